"""`qvae tune`: what is measured, and which variant wins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tune_cases import DEFAULT, OTHER, SIZE, TUNE, result, timing

from qvae_trt import backends
from qvae_trt.backends import devices
from qvae_trt.build import BuildSettings
from qvae_trt.cli import app as cli
from qvae_trt.errors import BackendError, BenchError, BuildError, EngineError, QvaeError, UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import PARTS
from qvae_trt.progress import Event, ignore
from qvae_trt.tune import record
from qvae_trt.tune import run as running
from qvae_trt.tune.record import Parity, follow
from qvae_trt.tune.run import fastest
from qvae_trt.tune.variants import default_variant

# --- for real: built, run and timed with onnxruntime ----------------------------------------------


def test_the_file_of_a_real_run(tuned: Path) -> None:
    assert [p.name for p in tuned.iterdir()] == ["tune.json"]  # no engine, no lock, no leftover
    file = record.load(tuned / "tune.json")
    assert (file.key.flavour, file.key.gpu, file.key.precision) == ("onnxruntime", "cpu", "fp32")
    assert file.key.flavour_version == backends.get("onnxruntime").version()
    assert file.command.startswith("qvae tune --resolution 64x48")
    default = default_variant("onnxruntime", "1", "fp32")
    assert [m.variant for m in file.measurements] == [default, default.changed(OTHER)]
    for row in file.measurements:
        assert (row.status, row.reason, row.model) == ("ok", "", "bundled:tiny")
        assert row.timing is not None
        assert row.timing.runs >= 5
        assert row.parity is not None
        assert row.parity.psnr_db is not None
        assert row.parity.psnr_db > 100
        assert row.engine_bytes is not None
        assert row.engine_bytes > 1_000_000
    choice = file.choices["decoder"]
    assert set(file.choices) == {"decoder"}
    assert choice.complete
    assert choice.variant == fastest(file.measurements, default).variant


def test_a_rerun_measures_nothing_again(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    out = tmp_path / "mine.json"
    out.write_bytes((tuned / "tune.json").read_bytes())
    monkeypatch.setattr(running, "build", None)
    monkeypatch.setattr(running, "measure_in_child", None)
    data = result(capsys, *TUNE, "--variants", OTHER, "--out", out)
    before, after = record.load(tuned / "tune.json"), record.load(out)
    assert after.measurements == before.measurements
    assert after.choices == before.choices
    assert data["file"] == str(out)
    assert [v["variant"] for v in data["variants"]] == ["default", OTHER]
    assert sum(v["chosen"] for v in data["variants"]) == 1
    assert cli.main([*TUNE, "--variants", OTHER, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "chosen" in shown.out
    assert "measured before" in shown.err


def test_the_measuring_process_passes_errors_on(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        running.measure_in_child(tmp_path / "none.onnx", [], running.LIMITS, progress=ignore)


# --- what is measured, with doubles for building and running --------------------------------------


class Bench:
    """Stands for building, running and comparing: times and faults by variant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms: dict[str, float] = {}
        self.broken: set[str] = set()
        self.fails: dict[str, QvaeError | type[BaseException]] = {}
        self.seen: list[str] = []
        self.weights = "a" * 64
        self.inputs: dict[str, Any] = {}
        monkeypatch.setattr(running, "build", self.build)
        monkeypatch.setattr(running, "measure_in_child", self.child)
        monkeypatch.setattr(running, "FoldedReference", lambda *_: self)
        monkeypatch.setattr(running, "recipe_sha256", lambda: "c" * 64)
        self.loads = 0
        monkeypatch.setattr(running, "load_model", self.load)

    def load(self, source: str) -> Any:
        self.loads += 1
        return SimpleNamespace(source=source, weights_sha256=self.weights, kind=QWEN_IMAGE)

    def build(self, jobs: Any, settings: BuildSettings, **_: Any) -> list[Any]:
        (variant,) = settings.variants.values()
        self.now = variant.against(DEFAULT)
        self.seen.append(self.now)
        fault = self.fails.get(self.now)
        if isinstance(fault, type):
            raise fault
        jobs[0].path.parent.mkdir(parents=True)
        return [SimpleNamespace(error=fault, seconds=1.0, engine_bytes=100)]

    def child(self, engine: Path, *_: Any, **__: Any) -> tuple[list, Any, None]:
        assert engine.parent.is_dir()
        return [], timing(self.ms.get(self.now, 10.0)), None

    def check(self, outputs: list, precision: str) -> tuple[Parity, str]:
        return Parity(psnr_db=50.0, relative_l2=0.01), "too far" if self.now in self.broken else ""

    def tune(self, out: Path, on_event: Any = ignore, **given: Any) -> running.TuneResult:
        self.seen.clear()
        given = {"parts": ["decoder"], "model": "m", "backend": "onnxruntime", **given}
        settings = running.TuneSettings(resolution=SIZE, out=out, **given)
        return running.tune(settings, on_event=on_event)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_axes_are_tried_from_the_best_so_far(bench: Bench, tmp_path: Path) -> None:
    bench.ms = {"upsample=depth_to_space": 9.0, "upsample=depth_to_space,attention_chunks=1": 7.0}
    found = bench.tune(tmp_path / "t.json")
    assert bench.seen == [
        "default",
        "upsample=conv_transpose",
        "upsample=depth_to_space",
        "upsample=depth_to_space,norm=conv_spread",
        "upsample=depth_to_space,norm=conv_wide",
        "upsample=depth_to_space,attention=exp",
        "upsample=depth_to_space,attention_chunks=1",
    ]
    assert found.ok
    chosen = found.chosen("decoder")
    assert chosen is not None
    assert chosen.variant.against(DEFAULT) == "upsample=depth_to_space,attention_chunks=1"
    assert record.load(tmp_path / "t.json") == found.file


def test_events_count_to_the_end(bench: Bench, tmp_path: Path) -> None:
    events: list[Event] = []
    bench.tune(tmp_path / "t.json", parts=PARTS, on_event=events.append)
    ends = [e for e in events if e.kind == "end"]
    assert [e.index for e in ends] == list(range(len(bench.seen)))
    assert {e.count for e in ends} == {len(bench.seen)}
    # The encoder has no upsampling.
    assert [e for e in ends if "encoder" in e.item and "upsample" in e.item] == []


def test_a_fast_wrong_variant_does_not_win(bench: Bench, tmp_path: Path) -> None:
    bench.ms = {"norm=conv_spread": 0.5, "attention=exp": 9.5}
    bench.broken = {"norm=conv_spread"}
    found = bench.tune(tmp_path / "t.json", variants=["norm=conv_spread", "attention=exp"])
    assert [(r.status, r.reason) for r in found.rows] == [
        ("ok", ""), ("broken", "too far"), ("ok", ""),
    ]  # fmt: skip
    assert found.file.choices["decoder"].variant == DEFAULT.changed("attention=exp")
    assert found.file.choices["decoder"].default_ms == 10.0


def test_a_failed_variant_does_not_stop_the_rest_and_is_tried_again(
    bench: Bench, tmp_path: Path
) -> None:
    out = tmp_path / "t.json"
    bench.fails = {"norm=conv_spread": BuildError("no kernel\nat all")}
    bench.ms = {"norm=conv_spread": 1.0}
    first = bench.tune(out, variants=["norm=conv_spread", "attention=exp"])
    assert [(r.status, r.reason) for r in first.rows][1] == ("failed", "no kernel at all")
    bench.fails = {}
    second = bench.tune(out, variants=["norm=conv_spread", "attention=exp"])
    assert bench.seen == ["norm=conv_spread"]
    assert second.chosen("decoder").variant == DEFAULT.changed("norm=conv_spread")


def test_nothing_that_holds(bench: Bench, tmp_path: Path) -> None:
    bench.broken = {"default", "norm=conv_spread"}
    found = bench.tune(tmp_path / "t.json", variants=["norm=conv_spread"])
    assert not found.ok
    assert found.file.choices == {}
    assert follow(
        str(tmp_path / "t.json"),
        engine_dir=tmp_path,
        backend=backends.get("onnxruntime"),
        precision="fp16",
        parts=["decoder"],
    ).lines == (f"{tmp_path / 't.json'}: the decoder was not tuned",)


def test_a_run_that_is_cut_short_goes_on(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    bench.ms = {"upsample=conv_transpose": 8.0}
    bench.fails = {"upsample=depth_to_space": KeyboardInterrupt}
    with pytest.raises(KeyboardInterrupt):
        bench.tune(out)
    held = record.load(out)
    assert [m.variant.against(DEFAULT) for m in held.measurements] == [
        "default", "upsample=conv_transpose",
    ]  # fmt: skip
    assert not held.choices["decoder"].complete
    bench.fails = {}
    found = bench.tune(out)
    assert bench.seen[0] == "upsample=depth_to_space"
    assert found.file.choices["decoder"].complete


def test_other_sizes_weights_and_machines_are_measured_anew(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    names = {"variants": ["norm=conv_spread"]}
    bench.tune(out, **names)
    bench.tune(out, **names)
    assert bench.seen == []
    bench.ms["norm=conv_spread"] = 5.0
    bench.fails = {"norm=conv_spread": KeyboardInterrupt}
    with pytest.raises(KeyboardInterrupt):
        bench.tune(out, **names, force=True)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert [m.timing.median_ms for m in record.load(out).measurements] == [10.0, 10.0]  # kept
    bench.fails = {}
    bench.tune(out, **names, force=True)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert sorted(m.timing.median_ms for m in record.load(out).measurements) == [5.0, 10.0]
    bench.weights = "b" * 64
    both = bench.tune(out, **names)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert (len(both.rows), len(both.file.measurements)) == (2, 4)
    record.save(replace(both.file, key=replace(both.file.key, flavour_version="0.1")), out)
    events: list[Event] = []
    last = bench.tune(out, **names, on_event=events.append)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert len(last.file.measurements) == 2
    assert "flavour version 0.1, expected" in events[0].text


def test_what_another_run_wrote_meanwhile_is_kept(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, load = tmp_path / "t.json", running.load_model

    def slowly(source: str) -> Any:
        monkeypatch.setattr(running, "load_model", load)
        bench.tune(out, variants=["norm=conv_spread"])  # ends while the first one loads its model
        return load(source)

    monkeypatch.setattr(running, "load_model", slowly)
    found = bench.tune(out, variants=["upsample=resize"])
    names = {m.variant.against(DEFAULT) for m in found.file.measurements}
    assert {"default", "norm=conv_spread"} <= names
    assert bench.seen == ["default", "norm=conv_spread"], "none was measured again"


def test_a_file_that_is_something_else_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "thesis.json"
    out.write_text('{"chapter": 1}')
    with pytest.raises(BenchError, match="malformed tune file"):
        bench.tune(out)
    assert out.read_text() == '{"chapter": 1}'
    assert bench.seen == []
    assert bench.loads == 0, "before the weights are read"


def test_what_cannot_run_here(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    monkeypatch.setattr(devices, "gpu", lambda: None)
    with pytest.raises(BackendError, match="running needs an NVIDIA GPU"):
        bench.tune(tmp_path / "t.json", backend="tensorrt_rtx")
    code = cli.main(
        [
            "tune",
            "--resolution",
            "64x48",
            "--backend",
            "tensorrt_rtx",
            "--engine-dir",
            str(tmp_path),
        ]
    )
    assert code == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "given",
    [
        {"variants": ["norm=fast"]},
        {"variants": ["level=2"]},  # onnxruntime has none
        {"variants": ["level=6"]},
        {"variants": [""]},
        {"variants": ["attention=exp,,"]},
        {"variants": ["level=1,level=2"]},
        {"variants": ["chunks=4"]},
        {"parts": []},
    ],
)
def test_wrong_use(bench: Bench, tmp_path: Path, given: dict) -> None:
    with pytest.raises(UsageError):
        bench.tune(tmp_path / "t.json", **given)
    assert list(tmp_path.iterdir()) == []
