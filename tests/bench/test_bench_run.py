"""The bench itself, on the CPU: small engines, small sizes, real time."""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ort_engines
import pytest
import torch
from verify_engines import only, rewrite

from qvae_trt.backends.onnxruntime import OnnxRuntime, OnnxRuntimeSession
from qvae_trt.bench import paths as bench_paths
from qvae_trt.bench import results, timing
from qvae_trt.bench import run as bench_run
from qvae_trt.bench.paths import Workbench
from qvae_trt.errors import BackendError, EngineError, ModelError, UsageError
from qvae_trt.model import BUNDLED_TINY
from qvae_trt.profiles import Resolution, engine_path
from qvae_trt.progress import Event

if TYPE_CHECKING:
    from qvae_trt.bench.results import BenchResult
    from qvae_trt.profiles import Part


STATIC = ort_engines.STATIC


OTHER = Resolution(64, 64)


OUTSIDE = Resolution(256, 256)
QUICK = timing.Limits(budget_s=0.02, min_runs=2, max_runs=3, warm_up=1, inputs=2)


def workbench(**given: object) -> Workbench:
    """On a CPU, of the tiny model."""
    settings = bench_run.BenchSettings(resolutions=(STATIC,), model="bundled:tiny", **given)  # type: ignore[arg-type]
    return Workbench(ort_engines.tiny(), settings, device="cpu")


def test_a_path_that_is_refused_at_each_size_keeps_nothing_of_the_last() -> None:
    """An exception that is raised again grows a traceback, which holds what it went through."""
    bench = workbench()
    depths = []
    for _ in range(3):
        with ExitStack() as stack, pytest.raises(BackendError) as refused:
            bench.prepare("fused", "decoder", STATIC, stack)
        depths.append(len(list(traceback.walk_tb(refused.value.__traceback__))))
    assert len(set(depths)) == 1


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ort_engines.shared(tmp_path_factory)


def measured(engine_dir: Path | None, *sizes: Resolution, **options: object) -> BenchResult:
    settings: dict[str, object] = {
        "model": BUNDLED_TINY,
        "engine_dir": engine_dir,
        "backend": "onnxruntime",
        "device": "cpu",
        "limits": QUICK,
        "command": "qvae bench",
    }
    told = {name: options.pop(name) for name in ("out", "on_event") if name in options}
    given = bench_run.BenchSettings(resolutions=sizes, **{**settings, **options})  # type: ignore[arg-type]
    return bench_run.bench(given, **told)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(
    engines: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BenchResult, list[Event], Path]:
    steps: list[Event] = []
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        # Compiling takes minutes on a CPU (the slow tier does it); this machine has no compiler.
        patch.setenv("CXX", "no-such-compiler")
        found = measured(
            engines,
            STATIC,
            OTHER,
            baselines=results.BASELINES,
            service=True,
            out=out,
            on_event=steps.append,
        )
    return found, steps, out


def test_engines_are_replayed_if_that_is_asked_for(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    open_engine = bench_paths.Engine.open

    def noted(*given: Any, cuda_graph: bool, **options: Any) -> bench_paths.Engine:
        asked.append(cuda_graph)
        engine = open_engine(*given, **options)
        engine.wants_graph = cuda_graph  # on a GPU it does
        return engine

    monkeypatch.setattr(bench_paths.Engine, "open", noted)
    for graphs in (False, True):
        options = {"baselines": ("folded",), "parts": ("decoder",), "cuda_graphs": graphs}
        found = measured(engines, STATIC, **options)
        assert found.runs[0].settings["cuda_graphs"] is graphs
        notes = ("replayed from a CUDA graph",) if graphs else ()
        expected = {"folded": (), "static": notes, "profiles": notes}
        assert {cell.path: cell.notes for cell in found.cells} == expected
        assert all(cell.timing is not None for cell in found.cells)
    assert asked == [False, False, True, True]


def test_every_path_that_can_run_is_measured(
    engines: Path, whole: tuple[BenchResult, list[Event], Path]
) -> None:
    result, _, out = whole
    assert result.paths == results.PATHS
    assert result.complete
    for cell in result.cells:
        expected = cell.path not in ("compiled", "fused") and not (
            cell.path == "static" and cell.resolution == OTHER
        )
        assert (cell.timing is not None) == expected, cell
        assert (not cell.notes) == expected, cell
        if cell.timing is not None:
            assert 0 < cell.timing.min_ms <= cell.timing.p10_ms <= cell.timing.median_ms
            assert cell.timing.median_ms <= cell.timing.p90_ms
            assert 2 <= cell.timing.runs <= 3
            assert isinstance(cell.detail["first_ms"], float)
            assert (result.speedup(cell) or 0) > 0
            assert (result.floor_share(cell) or 0) > 0
    reasons = {cell.path: cell.notes[0] for cell in result.cells if cell.notes}
    assert "no-such-compiler" in reasons["compiled"]
    assert "CUDA" in reasons["fused"]
    assert "qvae build --mode static --resolution 64x64" in reasons["static"]
    assert f"--engine-dir {engines}" in reasons["static"]
    assert results.load(out) == result


def test_the_default_engine_folder_needs_no_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    work = workbench(engine_dir=Path("engines"), backend="onnxruntime")
    with pytest.raises(EngineError, match="no engine static/64x64") as found:
        work.prepare("static", "decoder", OTHER, ExitStack())
    assert found.value.fix == (
        "qvae build --mode static --resolution 64x64 --model bundled:tiny --backend onnxruntime"
    )


def test_compiling_on_a_cpu_is_not_done_unasked() -> None:
    result = measured(None, OTHER, parts=("encoder",))
    assert result.paths == results.BASELINES_ON_CPU
    assert any("--baseline compiled" in note for note in result.runs[0].notes)


@pytest.mark.slow
def test_compiled_on_a_cpu() -> None:
    result = measured(None, OTHER, parts=("encoder",), baselines=("pytorch", "compiled"))
    cell = result.cell("encoder", OTHER, "compiled")
    assert cell is not None
    assert cell.timing is not None
    assert cell.notes == ()


def test_engines_are_named_and_the_profile_too(
    whole: tuple[BenchResult, list[Event], Path],
) -> None:
    cell = whole[0].cell("decoder", STATIC, "profiles")
    assert cell is not None
    assert cell.detail["engine"] == "profiles/vae_decoder_multi_profile.onnx"
    assert cell.detail["profile_index"] == 0
    assert str(cell.detail["flavour"]).startswith("onnxruntime 1.")
    assert cell.detail["engine_precision"] == "fp32"


def test_the_run_names_machine_versions_and_command(
    whole: tuple[BenchResult, list[Event], Path],
) -> None:
    run = whole[0].runs[0]
    assert (run.device, run.precision, run.model) == ("cpu", "fp32", BUNDLED_TINY)
    assert run.versions["torch"] == torch.__version__
    assert run.matmul is not None
    assert float(run.matmul["tflops"] or 0) > 0
    assert any("CPU" in note for note in run.notes)
    assert len(run.weights_sha256) == 64


def test_service_rows(whole: tuple[BenchResult, list[Event], Path]) -> None:
    rows = whole[0].service
    steady = [row for row in rows if row.kind == "latents_to_pil"]
    assert {(row.path, row.processor) for row in steady} == {
        ("pytorch", "stock"),
        *((path, tool) for path in ("folded", "static", "profiles") for tool in ("stock", "qvae")),
    }
    for row in steady:
        assert row.timing is not None
        assert set(row.steps) == {"decode_ms", "postprocess_ms"}
        assert row.steps["decode_ms"] < row.timing.p90_ms * 1.5
    first = {(row.path, row.resolution): row for row in rows if row.kind == "first_use"}
    loaded = first["static", STATIC]
    assert loaded.timing is not None
    assert loaded.timing.median_ms == pytest.approx(sum(loaded.steps.values()))
    assert set(loaded.steps) == {"load_ms", "first_run_ms"}
    assert set(first["pytorch", STATIC].steps) == {"first_run_ms"}
    assert first["static", OTHER].timing is None
    assert "no engine" in first["static", OTHER].notes[0]
    switched = {
        (row.path, row.previous, row.resolution): row for row in rows if row.kind == "switch"
    }
    assert switched["profiles", STATIC, OTHER].steps["steady_ms"] > 0
    assert switched["compiled", STATIC, OTHER].timing is None


def test_steps_are_told_in_order(whole: tuple[BenchResult, list[Event], Path]) -> None:
    steps = whole[1]
    assert [(step.kind, step.index) for step in steps] == [
        *(("start", index) for index in range(6)),
        ("end", 5),
    ]
    assert {step.count for step in steps} == {6}
    assert steps[0].text == "encoder 96x64"


def test_a_bench_that_is_stopped_leaves_what_it_had(engines: Path, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured(
            engines,
            STATIC,
            OTHER,
            out=tmp_path,
            on_event=stop,
            baselines=("folded",),
            parts=("decoder",),
        )
    kept = results.load(tmp_path)
    assert not kept.complete
    assert {(cell.resolution, cell.path) for cell in kept.cells} == {
        (STATIC, "folded"),
        (STATIC, "static"),
        (STATIC, "profiles"),
    }


def test_one_path_out_of_memory_empties_one_cell(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Workbench.prepare

    def small_device(
        self: Workbench, name: str, part: Part, resolution: Resolution, stack: ExitStack
    ) -> bench_paths.Prepared:
        made = prepare(self, name, part, resolution, stack)
        if name == "folded":

            def call(value: torch.Tensor) -> torch.Tensor:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0")

            made.call = call
        return made

    monkeypatch.setattr(Workbench, "prepare", small_device)
    found = measured(engines, STATIC, baselines=("folded",), parts=("decoder",))
    empty = found.cell("decoder", STATIC, "folded")
    assert empty is not None
    assert empty.timing is None
    (note,) = empty.notes
    assert note.startswith("out of memory on the GPU: CUDA out of memory. Tried to allocate 9 GiB;")
    other = found.cell("decoder", STATIC, "static")
    assert other is not None
    assert other.timing is not None


def test_an_engine_that_was_tampered_with_is_an_empty_cell(engines: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(engines, tmp_path / "engines")
    path = tmp_path / "engines" / "profiles" / "vae_decoder_multi_profile.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    found = measured(tmp_path / "engines", STATIC, baselines=(), parts=("decoder",))
    cell = found.cell("decoder", STATIC, "profiles")
    assert cell is not None
    assert cell.timing is None
    assert "vae_decoder_multi_profile.onnx" in cell.notes[0]


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ({"weights_sha256": "0" * 64}, "built from other weights"),
        ({"gpu": "NVIDIA H100"}, "built for another GPU"),
        ({"flavour_version": "0.1"}, "built by another version"),
        ({"part": "encoder"}, "the other half of the VAE"),
    ],
    ids=["weights", "gpu", "version", "part"],
)
def test_what_the_run_time_refuses_is_not_timed(
    engines: Path, tmp_path: Path, key: dict[str, object], said: str
) -> None:
    folder = only(engines, tmp_path, "static")
    rewrite(engine_path(folder, "decoder", "static", ".onnx", STATIC), key=key)
    found = measured(folder, STATIC, baselines=(), parts=("decoder",))
    cell = found.cell("decoder", STATIC, "static")
    assert cell is not None
    assert cell.timing is None
    assert said in cell.notes[0]


def test_an_engine_of_another_device_is_not_timed(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = workbench(engine_dir=engines, backend="onnxruntime")
    real = OnnxRuntime.open

    def on_a_gpu(self: OnnxRuntime, engine: Path) -> OnnxRuntimeSession:
        session = real(self, engine)
        session.device_type = "cuda"
        return session

    monkeypatch.setattr(OnnxRuntime, "open", on_a_gpu)
    with pytest.raises(EngineError, match="runs on cuda, the tensors are on cpu"):
        work.prepare("static", "decoder", STATIC, ExitStack())


def test_a_size_that_no_profile_holds(engines: Path) -> None:
    found = measured(engines, OUTSIDE, baselines=(), parts=("decoder",))
    cell = found.cell("decoder", OUTSIDE, "profiles")
    assert cell is not None
    assert cell.notes == ("no profile of vae_decoder_multi_profile.onnx holds 256x256",)


def test_paths_give_the_same_picture(engines: Path) -> None:
    work = workbench(engine_dir=engines, backend="onnxruntime")
    for part in ("encoder", "decoder"):
        value = work.make_inputs(part, STATIC, count=1)[0]  # type: ignore[arg-type]
        with torch.no_grad(), ExitStack() as stack:
            seen = {}
            for name in ("pytorch", "folded", "static", "profiles"):
                made = work.prepare(name, part, STATIC, stack)  # type: ignore[arg-type]
                seen[name] = made.call(value.to(made.dtype)).float().clone()
        for name, output in seen.items():
            torch.testing.assert_close(output, seen["pytorch"], atol=2e-3, rtol=1e-3, msg=name)


def test_inputs_differ_and_are_repeatable() -> None:
    def made() -> list[torch.Tensor]:
        work = workbench(engine_dir=None, backend="auto")
        return work.make_inputs("decoder", STATIC, count=2)

    first, second = made(), made()
    assert first[0].shape == (1, 16, 1, 8, 12)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"resolutions": ()}, UsageError, "nothing to measure"),
        ({"resolutions": (), "service": True}, UsageError, "nothing to measure"),
        ({"resolutions": (STATIC, STATIC)}, UsageError, "more than once"),
        ({"service": True, "cuda_graphs": True}, UsageError, "CUDA graphs"),
        ({"resolutions": (Resolution(100, 100),)}, UsageError, "100"),
        ({"baselines": ("jax",)}, UsageError, "jax"),
        ({"baselines": ("pytorch", "pytorch")}, UsageError, "more than once"),
        ({"baselines": ()}, UsageError, "nothing to measure"),
        ({"parts": ()}, UsageError, "nothing to measure"),
        ({"parts": ("middle",)}, UsageError, "middle"),
        ({"device": "tpu"}, UsageError, "tpu"),
        ({"model": "/no/such/folder"}, ModelError, "no/such"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    change: dict[str, object], error: type[Exception], named: str, tmp_path: Path
) -> None:
    options: dict[str, object] = {
        "resolutions": (STATIC,),
        "model": BUNDLED_TINY,
    }
    with pytest.raises(error, match=named):
        bench_run.bench(bench_run.BenchSettings(**{**options, **change}), out=tmp_path / "o")  # type: ignore[arg-type]
    assert not (tmp_path / "o").exists()


def test_a_gpu_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="GPU"):
        measured(None, STATIC, device="cuda")


@pytest.mark.gpu
def test_on_a_gpu_events_and_memory_are_measured() -> None:
    found = measured(None, OUTSIDE, baselines=("pytorch", "folded"), device="cuda")
    for cell in found.cells:
        assert cell.timing is not None
        assert cell.timing.wall_ms is not None
        assert cell.peak_bytes is not None
        assert cell.weights_bytes is not None
        assert cell.peak_bytes > cell.weights_bytes > 0
    assert found.runs[0].machine["gpu"]
