"""`qvae tune`: what is measured, what wins, what the file holds, and how `build` follows it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qvae_trt import backends, store, tune
from qvae_trt.backends import devices
from qvae_trt.bench.results import Timing
from qvae_trt.build import BuildSettings
from qvae_trt.cli import app as cli
from qvae_trt.errors import BackendError, BenchError, BuildError, EngineError, QvaeError, UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lowerings import Lowering
from qvae_trt.model import load_model
from qvae_trt.profiles import BACKENDS, PARTS, PRECISIONS, Resolution
from qvae_trt.tune import (
    Measurement,
    Parity,
    Subject,
    TunedVariant,
    TuneFile,
    TuneKey,
    Variant,
    curated,
    default_variant,
    fastest,
    follow,
    record,
)
from qvae_trt.tune import run as running
from qvae_trt.tune.reference import FoldedReference

SIZE = Resolution(48, 64)
DEFAULT = default_variant("onnxruntime", "1", "fp16")
SUBJECT = Subject(part="decoder", resolution=SIZE, weights_sha256="a" * 64, recipe_sha256="c" * 64)
TINY = ["--model", "bundled:tiny", "--backend", "onnxruntime", "--precision", "fp32"]
TUNE = ["tune", "--resolution", "64x48", *TINY, "--part", "decoder", "--budget", "0.05"]
OTHER = "upsample=depth_to_space"


def timing(ms: float) -> Timing:
    return Timing(median_ms=ms, p10_ms=ms, p90_ms=ms, min_ms=ms, runs=3)


def measured(text: str, ms: float, status: str = "ok") -> Measurement:
    found = Measurement(subject=SUBJECT, variant=DEFAULT.changed(text), model="m", status="failed")
    if status == "failed":
        return replace(found, reason="no kernel")
    parity = Parity(psnr_db=70.0, relative_l2=1e-3)
    return replace(found, status=status, timing=timing(ms), parity=parity)


def sample() -> TuneFile:
    """A file with each kind of row."""
    here = TuneKey.here(backends.get("onnxruntime"), "fp16")
    rows = (
        measured("default", 10.0),
        replace(
            measured("attention=exp", 8.5),
            build_seconds=12.5,
            engine_bytes=2_900_000,
            memory_bytes=1 << 30,
        ),
        measured("norm=conv_spread", 1.5, "broken"),
        measured("attention_chunks=1", 0, "failed"),
    )
    choice = TunedVariant(subject=SUBJECT, variant=rows[1].variant, default_ms=10.0, complete=True)
    return TuneFile(key=here, measurements=rows, choices={"decoder": choice}, command="qvae tune")


# --- for real: built, run and timed with onnxruntime ----------------------------------------------


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tune file of two variants; read only."""
    folder = tmp_path_factory.mktemp("tuned") / "engines"
    assert cli.main([*TUNE, "--variants", OTHER, "--engine-dir", str(folder)]) == 0
    return folder


def result(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_the_file_of_a_real_run(tuned: Path) -> None:
    assert [p.name for p in tuned.iterdir()] == ["tune.json"]  # no engine, no lock, no leftover
    file = tune.load(tuned / "tune.json")
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
    before, after = tune.load(tuned / "tune.json"), tune.load(out)
    assert after.measurements == before.measurements
    assert after.choices == before.choices
    assert data["file"] == str(out)
    assert [v["variant"] for v in data["variants"]] == ["default", OTHER]
    assert sum(v["chosen"] for v in data["variants"]) == 1
    assert cli.main([*TUNE, "--variants", OTHER, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "chosen" in shown.out
    assert "measured before" in shown.err


def test_build_follows(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever variant won here, build takes the file's."""
    engines = tmp_path / "engines"
    engines.mkdir()
    file = tune.load(tuned / "tune.json")
    wanted = default_variant("onnxruntime", "1", "fp32").changed(OTHER)
    choices = {"decoder": replace(file.choices["decoder"], variant=wanted)}
    tune.save(replace(file, choices=choices), engines / "tune.json")
    build = ["build", "--mode", "static", "--resolution", "64x48", "--part", "decoder", *TINY]
    data = result(capsys, *build, "--engine-dir", engines)
    assert data["tune"]["used"] is True
    (note,) = data["tune"]["notes"]
    assert f"decoder {wanted}: " in note
    engine = engines / "static" / "64x48" / "vae_decoder.onnx"
    assert store.read_sidecar(engine).key.lowering == wanted.lowering.canonical()
    # Without the file, the same engine is another form of the graph.
    data = result(capsys, *build, "--engine-dir", engines, "--tune", "none", "--dry-run")
    assert data["tune"] == {"file": None, "used": False, "notes": []}
    assert "another form of the graph" in data["engines"][0]["reason"]
    data = result(capsys, *build, "--engine-dir", engines, "--dry-run")
    assert data["engines"][0]["status"] == "kept"
    assert tune.built_otherwise(tune.load(engines / "tune.json"), engines) == []
    choices["decoder"] = replace(
        choices["decoder"], variant=default_variant("onnxruntime", "1", "fp32")
    )
    assert tune.built_otherwise(replace(file, choices=choices), engines) == [engine]
    elsewhere = replace(file.key, flavour_version="0.1")
    assert tune.built_otherwise(replace(file, choices=choices, key=elsewhere), engines) == []


def test_build_ignores_what_was_measured_elsewhere(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    file = tune.load(tuned / "tune.json")
    tune.save(replace(file, key=replace(file.key, gpu="NVIDIA H200")), engines / "tune.json")
    build = ["build", "--mode", "static", "--resolution", "64x48", *TINY, "--dry-run"]
    data = result(capsys, *build, "--engine-dir", engines)
    assert data["tune"]["used"] is False
    assert "gpu NVIDIA H200, expected cpu" in data["tune"]["notes"][0]
    assert cli.main([*build, "--tune", str(engines / "tune.json")]) == 1
    assert "tuned for something else: gpu NVIDIA H200, expected cpu" in capsys.readouterr().err


def test_the_measuring_process_passes_errors_on(tmp_path: Path) -> None:
    request = {
        "engine": str(tmp_path / "none.onnx"),
        "inputs": "",
        "outputs": "",
        "limits": asdict(tune.LIMITS),
    }
    with pytest.raises(EngineError, match="no such file"):
        running.measure_in_child(request, progress=lambda *_: True)


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_engine_is_seen(part: Any, tmp_path: Path) -> None:
    reference = FoldedReference(load_model("bundled:tiny"), part, SIZE)
    assert len(reference.inputs) == 2
    reference.write_inputs(tmp_path / "in.npy")
    names = list(reference.inputs)
    assert np.array_equal(np.load(tmp_path / "in.npy")[1], reference.inputs[names[1]])
    right = [
        np.concatenate(list(reference._fp32[name].values()), axis=1).astype(np.float32)
        for name in names
    ]

    def check(arrays: list[np.ndarray]) -> tuple[Parity, str]:
        np.save(tmp_path / "out.npy", np.stack(arrays))
        return reference.check(tmp_path / "out.npy", "fp16")

    assert check(right)[1] == ""
    # Wrong on the second input alone, by one pixel, by a little, by one number.
    assert "relative_l2" in check([right[0], np.roll(right[1], 1, -1)])[1]
    noise = np.random.default_rng(0).standard_normal(right[0].shape).astype(np.float32)
    parity, words = check([right[0] + 0.05 * noise, right[1]])
    assert names[0] in words
    assert parity.relative_l2 is not None
    assert parity.relative_l2 > 1e-3
    holed = right[1].copy()
    holed[0, 0, 0, 3, 4] = np.nan
    parity, words = check([right[0], holed])
    assert "finite" in words
    assert parity.relative_l2 is None


# --- what is measured, with doubles for building and running --------------------------------------


class Bench:
    """Stands for building, running and comparing: times and faults by variant."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms: dict[str, float] = {}
        self.broken: set[str] = set()
        self.fails: dict[str, QvaeError | type[BaseException]] = {}
        self.seen: list[str] = []
        self.weights = "a" * 64
        monkeypatch.setattr(running, "build", self.build)
        monkeypatch.setattr(running, "measure_in_child", self.child)
        monkeypatch.setattr("qvae_trt.tune.reference.FoldedReference", lambda *_: self)
        monkeypatch.setattr("qvae_trt.export.recipe_sha256", lambda: "c" * 64)
        monkeypatch.setattr(
            "qvae_trt.model.load_model",
            lambda source: SimpleNamespace(
                source=source, weights_sha256=self.weights, kind=QWEN_IMAGE
            ),
        )

    def build(self, jobs: Any, settings: BuildSettings, **_: Any) -> list[Any]:
        (lowering,) = settings.lowerings.values()
        variant = Variant(lowering, settings.level)
        self.now = variant.against(DEFAULT)
        self.seen.append(self.now)
        fault = self.fails.get(self.now)
        if isinstance(fault, type):
            raise fault
        jobs[0].path.parent.mkdir(parents=True)
        return [SimpleNamespace(error=fault, seconds=1.0, engine_bytes=100)]

    def child(self, request: dict, **_: Any) -> dict:
        assert Path(request["engine"]).parent.is_dir()
        return {"timing": asdict(timing(self.ms.get(self.now, 10.0))), "memory_bytes": None}

    def write_inputs(self, path: Path) -> None:
        pass

    def check(self, outputs: Path, precision: str) -> tuple[Parity, str]:
        return Parity(psnr_db=50.0, relative_l2=0.01), "too far" if self.now in self.broken else ""

    def tune(self, out: Path, on_event: Any = None, **given: Any) -> tune.TuneResult:
        self.seen.clear()
        given = {"parts": ["decoder"], "model": "m", "backend": "onnxruntime", **given}
        settings = tune.TuneSettings(resolution=SIZE, out=out, **given)
        return tune.tune(settings, on_event=on_event)


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
        "upsample=depth_to_space,attention=exp",
        "upsample=depth_to_space,attention_chunks=1",
    ]
    assert found.ok
    chosen = found.chosen("decoder")
    assert chosen is not None
    assert chosen.variant.against(DEFAULT) == "upsample=depth_to_space,attention_chunks=1"
    assert tune.load(tmp_path / "t.json") == found.file


def test_events_count_to_the_end(bench: Bench, tmp_path: Path) -> None:
    events: list[tune.TuneEvent] = []
    bench.tune(tmp_path / "t.json", parts=PARTS, on_event=events.append)
    ends = [e for e in events if e.kind == "end"]
    assert [e.done for e in ends] == list(range(1, len(bench.seen) + 1))
    assert {e.total for e in ends} == {len(bench.seen)}
    # The encoder has no upsampling.
    assert {e.variant for e in ends if e.part == "encoder" and "upsample" in e.variant} == set()


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
    held = tune.load(out)
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
    assert [m.timing.median_ms for m in tune.load(out).measurements] == [10.0, 10.0]  # kept
    bench.fails = {}
    bench.tune(out, **names, force=True)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert sorted(m.timing.median_ms for m in tune.load(out).measurements) == [5.0, 10.0]
    bench.weights = "b" * 64
    both = bench.tune(out, **names)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert (len(both.rows), len(both.file.measurements)) == (2, 4)
    tune.save(replace(both.file, key=replace(both.file.key, flavour_version="0.1")), out)
    events: list[tune.TuneEvent] = []
    last = bench.tune(out, **names, on_event=events.append)
    assert bench.seen == ["default", "norm=conv_spread"]
    assert len(last.file.measurements) == 2
    assert "flavour version 0.1, expected" in events[0].text


def test_a_file_that_is_something_else_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "thesis.json"
    out.write_text('{"chapter": 1}')
    with pytest.raises(BenchError, match="malformed tune file"):
        bench.tune(out)
    assert out.read_text() == '{"chapter": 1}'
    assert bench.seen == []


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


# --- variants -------------------------------------------------------------------------------------


def test_a_variant_as_text() -> None:
    base = Variant(Lowering(norm="conv_spread", attention="exp", attention_chunks=8))
    changed = base.changed("attention_chunks=4, level=2")
    assert (changed.lowering.norm, changed.lowering.attention_chunks) == ("conv_spread", 4)
    assert changed.level == 2
    assert changed.against(base) == "attention_chunks=4,level=2"
    assert base.against(base) == "default"
    assert base.changed("default") == base
    for variant in (base, changed):
        assert Variant(Lowering()).changed(str(variant)) == variant


@pytest.mark.parametrize("flavour", BACKENDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", PARTS)
def test_curated_variants_can_be_built(flavour: str, precision: Any, part: Any) -> None:
    default = default_variant(flavour, "8.6.1", precision)
    tried = [
        default.changed(f"{name}={value}")
        for name, values in curated(flavour, precision, part, (8, 8))
        for value in values
    ]
    assert tried
    assert all(v.lowering.attention != "fused" for v in tried)  # has no ONNX
    if flavour != "tensorrt":
        assert all(v.level is None for v in tried)
    if precision == "bf16":
        assert all(v.lowering.upsample != "conv_transpose" for v in tried)
    small = curated(flavour, precision, part, (2, 2))
    assert all(int(n) <= 4 for name, values in small if name == "attention_chunks" for n in values)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["default", "norm=conv_spread", "attention=exp", "attention_chunks=1"]),
            st.floats(1.0, 3.0),
            st.sampled_from(["ok", "broken", "failed"]),
        ),
        unique_by=lambda row: row[0],
    )
)
def test_the_fastest_that_is_right(rows: list[tuple[str, float, str]]) -> None:
    found = [measured(*row) for row in rows]
    right = {m.variant: m.timing.median_ms for m in found if m.status == "ok"}
    best = fastest(found, DEFAULT)
    if best is None:
        assert right == {}
        return
    assert best.status == "ok"
    least = min(right.values())
    if best.variant == DEFAULT:
        assert right[DEFAULT] * 0.99 <= least
    else:
        assert right[best.variant] == least
        assert DEFAULT not in right or right[DEFAULT] * 0.99 > least


# --- the file -------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    tune.save(sample(), path)
    assert tune.load(path) == sample()


def test_levels_are_followed(tmp_path: Path) -> None:
    file = sample()
    row = replace(file.measurements[1], variant=file.measurements[1].variant.changed("level=4"))
    choice = replace(file.choices["decoder"], variant=row.variant, complete=False)
    file = replace(file, measurements=(row,), choices={"decoder": choice})
    tune.save(file, tmp_path / "tune.json")
    backend = backends.get("onnxruntime")
    found = follow(None, engine_dir=tmp_path, backend=backend, precision="fp16", parts=PARTS)
    assert (found.used, found.levels) == (True, {"decoder": 4})
    assert found.lowerings == {"decoder": row.variant.lowering}
    assert found.lines[0].endswith("the encoder was not tuned")
    assert found.lines[1].endswith(
        f"{row.variant}: 8.50 ms, default 10.00 ms, at 64x48 (qvae tune was not finished)"
    )


def test_build_leaves_a_named_pipe_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tune.json")
    backend = backends.get("onnxruntime")
    found = follow(None, engine_dir=tmp_path, backend=backend, precision="fp16", parts=PARTS)
    assert not found.used
    assert "is a named pipe, expected a file" in found.lines[0]


@pytest.mark.parametrize("content", [b"{", b"", b"\xff", b"[]", b"[" * 100_000])
def test_build_leaves_a_broken_file_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tune.json").write_bytes(content)
    given = {"backend": backends.get("onnxruntime"), "precision": "fp16", "parts": PARTS}
    found = follow(None, engine_dir=tmp_path, **given)
    assert not found.used
    assert found.lowerings == {}
    assert "malformed tune file" in found.lines[0]
    with pytest.raises(BenchError, match="malformed tune file"):
        follow(str(tmp_path / "tune.json"), engine_dir=tmp_path, **given)
    with pytest.raises(BenchError, match="cannot be read"):
        follow(str(tmp_path / "none.json"), engine_dir=tmp_path, **given)
    assert follow("none", engine_dir=tmp_path, **given).lines == ()


def paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [at, *(place for key, item in inner for place in paths(item, (*at, key)))]


PLACES = paths(sample().to_dict())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)
LIKELY = st.sampled_from(
    [0, -1, 1, 6, 1e300, 10**400, "", "a" * 64, "64x48", "64X48", "63x48", "ok", "failed", "\ud800"]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    place=st.sampled_from(PLACES),
    how=st.sampled_from(["replace", "remove", "add"]),
    value=JSON | LIKELY,
)
def test_a_changed_file_is_refused_or_read_whole(
    place: tuple[Any, ...], how: str, value: object
) -> None:
    data: Any = sample().to_dict()
    holder, keys = data, list(place)
    while len(keys) > 1:
        holder = holder[keys.pop(0)]
    if not keys:
        data = value
    elif how == "remove":
        del holder[keys[0]]
    elif how == "replace" or not isinstance(holder, dict):
        holder[keys[0]] = value
    else:
        holder["more"] = value
    read_or_refuse(json.dumps(data).encode())
    if how == "remove" and keys and isinstance(keys[0], str) and place != ("choice", "decoder"):
        with pytest.raises(BenchError):
            record.parse(json.dumps(data).encode(), path=Path("t.json"))


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_or_read_whole(raw: bytes) -> None:
    read_or_refuse(raw)


def read_or_refuse(raw: bytes) -> None:
    try:
        file = record.parse(raw, path=Path("t.json"))
    except BenchError as error:
        assert error.what.startswith("t.json: ")
        error.what.encode()  # can be printed
        return
    again = record.parse(json.dumps(file.to_dict()).encode(), path=Path("t.json"))
    assert again == file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format_version=2), "of format 2, expected 1: written by a newer qvae"),
        (lambda d: d["choice"]["decoder"].update(level=3), "choice.decoder: not among"),
        (lambda d: d["measurements"].append(d["measurements"][0]), "one variant twice"),
        (lambda d: d["measurements"][1].update(status="broken"), "choice.decoder: not among"),
        (
            lambda d: d["measurements"][1].update(lowering="norm=fp32"),
            "of another qvae: lowering 'norm=fp32', expected every field",
        ),
        (
            lambda d: d["choice"]["decoder"].update(lowering="norm=conv"),
            "of another qvae: unknown norm lowering 'conv'",
        ),
        (lambda d: d["measurements"][3].update(status="ok"), "does not fit timing and parity"),
        (lambda d: d["measurements"][0]["timing"].update(median_ms=0), "expected more than 0"),
        (lambda d: d["measurements"][0].update(extra=1), "measurements[0].'extra': unknown"),
        (lambda d: d["key"].update(precision="int8"), "key.precision: expected one of fp16"),
    ],
)
def test_what_a_refusal_says(change: Any, words: str) -> None:
    data: Any = json.loads(json.dumps(sample().to_dict()))
    change(data)
    with pytest.raises(BenchError) as caught:
        record.parse(json.dumps(data).encode(), path=Path("t.json"))
    assert words in caught.value.what
    assert caught.value.fix is not None


def test_twice_the_same_name() -> None:
    with pytest.raises(BenchError, match="twice in one object"):
        record.parse(b'{"format_version": 1, "format_version": 1}', path=Path("t.json"))
