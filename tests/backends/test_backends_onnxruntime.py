"""ONNX Runtime as a backend: the one that everything downstream is tested with on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import small_graphs
from fake_gpus import H200, put_gpu
from small_graphs import FIXED, SMALL, WIDE, spec

from qvae_trt import backends
from qvae_trt.backends import onnxruntime as adapter
from qvae_trt.errors import (
    BackendError,
    BuildError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
    StoreError,
)
from qvae_trt.profiles import Resolution, engine_path
from qvae_trt.tensors import TensorSpec


@pytest.fixture
def backend() -> backends.Backend:
    return backends.get("onnxruntime")


@pytest.fixture
def engine(backend: backends.Backend, tmp_path: Path) -> Path:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    backend.build(graph, tmp_path / "e.onnx", spec(WIDE, SMALL))
    return tmp_path / "e.onnx"


def run(session: backends.Session, x: np.ndarray, profile: int = 0) -> np.ndarray:
    assert session.select(x.shape, profile) == 0
    y = np.full(session.output_shape(), np.nan, x.dtype)
    session.execute(
        input_ptr=x.ctypes.data,
        output_ptr=y.ctypes.data,
        scratch_ptr=0,
        scratch_bytes=0,
        stream=0,
    )
    return y


@pytest.mark.parametrize(
    ("elem", "precision", "kind", "bound"),
    [
        (small_graphs.FP16, "fp16", np.float16, 2e-3),
        (small_graphs.FP32, "fp32", np.float32, 1e-6),
    ],
)
@pytest.mark.parametrize("shape", [(1, 4, 1, 7, 9), (1, 4, 1, 32, 4)])
def test_right_by_raw_pointers(
    backend: backends.Backend,
    tmp_path: Path,
    elem: int,
    precision: Any,
    kind: Any,
    bound: float,
    shape: tuple[int, ...],
) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", elem=elem)
    outcome = backend.build(graph, tmp_path / "e.onnx", spec(precision=precision))
    assert outcome.input.dtype == np.dtype(kind).name
    x = np.random.default_rng(1).standard_normal(shape).astype(kind)
    kept = x.copy()
    y = run(backend.open(tmp_path / "e.onnx"), x)
    wanted = small_graphs.run_decoder(x)
    assert y.shape == wanted.shape
    assert np.abs(y - wanted).max() <= bound
    assert (x == kept).all()


def test_outcome(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", side=(16, 24))
    outcome = backend.build(graph, tmp_path / "e.onnx", spec(FIXED))
    assert outcome.input == TensorSpec("latents", "float16", (1, 4, 1, 16, 24))
    assert outcome.output == TensorSpec("images", "float16", (1, 3, 1, 128, 192))
    assert outcome.flags["providers"] == "CPUExecutionProvider"
    session = backend.open(tmp_path / "e.onnx")
    assert (session.input, session.output) == (outcome.input, outcome.output)
    assert session.ranges == (FIXED,)
    assert session.device_type == "cpu"


def test_one_file_and_nothing_else(engine: Path) -> None:
    assert sorted(p.name for p in engine.parent.iterdir()) == ["d.onnx", "e.onnx"]
    assert not any(t.external_data for t in onnx.load(str(engine)).graph.initializer)


def test_the_graph_was_optimized(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx", elem=small_graphs.FP32)
    backend.build(graph, tmp_path / "e.onnx", spec(precision="fp32"))
    assert "QuickGelu" in small_graphs.node_types(tmp_path / "e.onnx")  # Sigmoid and Mul, fused
    assert "QuickGelu" not in small_graphs.node_types(graph)


def test_ranges_come_back_in_order(backend: backends.Backend, engine: Path) -> None:
    assert backend.open(engine).ranges == (WIDE, SMALL)


@pytest.mark.parametrize(
    ("shape", "profile", "words"),
    [
        ((1, 4, 1, 33, 8), 0, r"dimension 3 is 33, expected 4\.\.32"),
        ((1, 4, 1, 13, 8), 1, r"dimension 3 is 13, expected 4\.\.12"),
        ((2, 4, 1, 8, 8), 0, "dimension 0 is 2"),
        ((1, 4, 8, 8), 0, "4 dimensions"),
        ((1, 4, 1, 8, 8), 2, "profile 2: the engine has 2"),
    ],
)
def test_shapes_outside_are_refused(
    backend: backends.Backend, engine: Path, shape: tuple[int, ...], profile: int, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        backend.open(engine).select(shape, profile)


def test_sizes_in_turn(backend: backends.Backend, engine: Path) -> None:
    session = backend.open(engine)
    for side in (4, 12, 5, 12):
        x = np.random.default_rng(side).standard_normal((1, 4, 1, side, 8)).astype(np.float16)
        assert np.abs(run(session, x, 1) - small_graphs.run_decoder(x)).max() <= 2e-3


def test_bf16_is_refused_with_a_way_out(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    with pytest.raises(BackendError, match="no bf16 convolution") as caught:
        backend.build(graph, tmp_path / "e.onnx", spec(precision="bf16"))
    assert caught.value.fix == "--precision fp16 or --precision fp32"


def test_a_full_temporary_folder_is_named(
    backend: backends.Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime calls it a failed serialization; without room no graph can be written."""
    (tmp_path / "x.onnx").write_text("no graph")
    usage = SimpleNamespace(total=9, used=9, free=0)
    monkeypatch.setattr(adapter.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        backend.build(tmp_path / "x.onnx", tmp_path / "e.onnx", spec())
    assert "TMPDIR=DIR" in str(caught.value.fix)


@pytest.mark.parametrize("content", [b"", b"not onnx", b"\x08\x08"])
def test_a_file_that_is_no_graph(backend: backends.Backend, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BuildError, match="does not load it"):
        backend.build(tmp_path / "x.onnx", tmp_path / "e.onnx", spec())
    with pytest.raises(EngineError, match="does not load it"):
        backend.open(tmp_path / "x.onnx")
    assert not (tmp_path / "e.onnx").exists()


def test_missing_files(backend: backends.Backend, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such engine"):
        backend.open(tmp_path / "x.onnx")


def test_a_plain_onnx_file_is_no_engine(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    with pytest.raises(ForeignEngineError, match="without the ranges"):
        backend.open(graph)


@pytest.mark.parametrize(
    "held",
    [
        "{",
        "[]",
        "{}",
        '{"profiles": []}',
        '{"profiles": [[[1], [1]]]}',
        '{"profiles": [[[1], [1], ["x"]]]}',
        '{"profiles": [[[1], [1], [1]]]}',
        '{"profiles": [[[0, 4, 1, 4, 4], [1, 4, 1, 4, 4], [1, 4, 1, 4, 4]]]}',
    ],
)
def test_metadata_that_was_tampered_with(
    backend: backends.Backend, engine: Path, held: str
) -> None:
    model = onnx.load(str(engine))
    onnx.helper.set_model_props(model, {adapter.RANGES_KEY: held})
    onnx.save(model, str(engine))
    with pytest.raises(EngineError, match="its ranges"):
        backend.open(engine)


@pytest.mark.parametrize("names", [("8h", "8w"), ("8*h", "8*x"), ("h*8", "w"), ("", "")])
def test_sides_of_other_names(
    backend: backends.Backend, engine: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Their lengths cannot be known: nothing is built of them, and nothing is opened."""
    for path in (tmp_path / "d.onnx", engine):
        model = onnx.load(str(path))
        sides = model.graph.output[0].type.tensor_type.shape.dim[3:]
        for side, name in zip(sides, names, strict=True):
            side.dim_param = name
        onnx.save(model, str(path))
    with pytest.raises(EngineError, match=r"expected as many, named as h or 8\*h"):
        backend.build(tmp_path / "d.onnx", tmp_path / "f.onnx", spec())
    assert not (tmp_path / "f.onnx").exists()
    with pytest.raises(EngineError, match="expected as many") as refused:
        backend.open(engine)
    assert str(engine) in refused.value.what
    model = onnx.load(str(engine))
    del model.metadata_props[:]
    onnx.save(model, str(engine))
    with pytest.raises(ForeignEngineError, match="without the ranges"):
        backend.open(engine)


def test_an_engine_of_0_1_0(backend: backends.Backend, engine: Path) -> None:
    """It also held an example of both shapes, which is not needed."""
    model = onnx.load(str(engine))
    (held,) = [p for p in model.metadata_props if p.key == adapter.RANGES_KEY]
    example = [[1, 4, 1, 4, 4], [1, 3, 1, 32, 32]]
    held.value = json.dumps(json.loads(held.value) | {"example": example})
    onnx.save(model, str(engine))
    x = np.random.default_rng(0).standard_normal((1, 4, 1, 9, 8)).astype(np.float16)
    assert np.abs(run(backend.open(engine), x) - small_graphs.run_decoder(x)).max() <= 2e-3


def test_a_place_that_cannot_be_written(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    with pytest.raises(StoreError, match="cannot write"):
        backend.build(graph, tmp_path / "missing" / "e.onnx", spec())


def break_runs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Runs fail as onnxruntime's do."""

    def fail(_session: Any, _binding: Any) -> None:
        raise error

    monkeypatch.setattr(onnxruntime.InferenceSession, "run_with_iobinding", fail)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("std::bad_alloc"), DeviceMemoryError),
        (RuntimeError("Non-zero status code returned while running Conv"), ExecutionError),
    ],
)
def test_a_run_that_fails(
    backend: backends.Backend,
    engine: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[Exception],
) -> None:
    session: Any = backend.open(engine)
    break_runs(monkeypatch, error)
    with pytest.raises(kind, match=r"failed on \[1, 4, 1, 8, 8\]: "):
        run(session, np.zeros((1, 4, 1, 8, 8), np.float16))


def test_a_bug_is_no_engines_fault(
    backend: backends.Backend, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = backend.open(engine)
    break_runs(monkeypatch, AssertionError("ours"))
    with pytest.raises(AssertionError, match="ours"):
        run(session, np.zeros((1, 4, 1, 8, 8), np.float16))


def test_progress_and_cancel(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    seen: list[Any] = []
    backend.build(graph, tmp_path / "e.onnx", spec(), progress=lambda *s: seen.append(s))
    assert seen == [("optimize", 0, 1), ("optimize", 1, 1)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.build(graph, tmp_path / "f.onnx", spec(), progress=stop)
    assert not (tmp_path / "f.onnx").exists()


def test_inspect(backend: backends.Backend, engine: Path) -> None:
    report: Any = backend.open(engine).inspect()
    assert json.loads(json.dumps(report)) == report
    assert report["operations"]["Conv"] == 1
    assert [p["opt"] for p in report["profiles"]] == [list(WIDE.opt), list(SMALL.opt)]
    assert len(report["layers"]) == sum(report["operations"].values())


def test_identity(backend: backends.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = backend.identity()
    assert (identity["flavour"], identity["gpu"]) == ("onnxruntime", "cpu")
    assert identity["compute_capability"] is None
    put_gpu(monkeypatch, H200)  # a GPU alone is not enough: this onnxruntime has no CUDA provider
    assert backend.identity() == identity
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    assert backend.identity()["gpu"] == "NVIDIA H200"
    device = backend.device()
    assert device is not None
    assert device.name == "NVIDIA H200"


def test_on_cuda_the_callers_stream_comes_first(
    backend: backends.Backend, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = backend.open(engine)
    order: list[Any] = []

    class Binding:
        def bind_input(self, *args: Any) -> None:
            order.append(("input", *args[:3]))

        def bind_output(self, *args: Any) -> None:
            order.append(("output", *args[:3]))

    sessions = onnxruntime.InferenceSession
    monkeypatch.setattr(sessions, "io_binding", lambda _: Binding())
    monkeypatch.setattr(sessions, "run_with_iobinding", lambda *_: order.append("run"))
    session.device_type = "cuda"
    monkeypatch.setattr(adapter.devices, "synchronize", lambda s: order.append(s) or 0)
    session.select((1, 4, 1, 8, 8), 0)
    pointers = {"input_ptr": 256, "output_ptr": 512, "scratch_ptr": 0, "scratch_bytes": 0}
    session.execute(**pointers, stream=9)
    assert order == [9, ("input", "latents", "cuda", 0), ("output", "images", "cuda", 0), "run"]
    monkeypatch.setattr(adapter.devices, "synchronize", lambda s: 700)
    with pytest.raises(ExecutionError, match="error 700"):
        session.execute(**pointers, stream=9)


def test_on_cuda_it_runs_on_the_current_gpu(
    backend: backends.Backend, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pointers are of that GPU, and the provider would take the first one."""
    put_gpu(monkeypatch, H200)
    monkeypatch.setattr(adapter.devices, "current_index", lambda: 3)
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    def session_on_cpu(path: str, options: Any, *, providers: Any) -> Any:
        asked.append(providers)
        return real(path, options, providers=names[1:])

    monkeypatch.setattr(onnxruntime, "InferenceSession", session_on_cpu)
    session: Any = backend.open(engine)
    assert asked == [[(names[0], {"device_id": 3}), names[1]]]
    assert session.device_type == "cuda"
    bound: list[Any] = []
    binding = SimpleNamespace(
        bind_input=lambda *args: bound.append(args[:3]),
        bind_output=lambda *args: bound.append(args[:3]),
    )
    monkeypatch.setattr(real, "io_binding", lambda _: binding)
    monkeypatch.setattr(real, "run_with_iobinding", lambda *_: None)
    monkeypatch.setattr(adapter.devices, "synchronize", lambda _: 0)
    session.select((1, 4, 1, 8, 8), 0)
    session.execute(input_ptr=256, output_ptr=512, scratch_ptr=0, scratch_bytes=0, stream=0)
    assert bound == [("latents", "cuda", 3), ("images", "cuda", 3)]


def test_nothing_is_written_elsewhere_or_sent(tmp_path: Path, engine: Path) -> None:
    """onnxruntime 1.32 keeps a telemetry store in the home folder and a session id in TMPDIR."""
    places = {name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir()
    code = (
        "import sys; from pathlib import Path; from qvae_trt import backends;"
        "backend = backends.get('onnxruntime'); session = backend.open(Path(sys.argv[1]));"
        "session.select((1, 4, 1, 8, 8), 0); print(session.output_shape())"
    )
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(engine)],
        env={**kept, **{name: str(place) for name, place in places.items()}},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "(1, 3, 1, 64, 64)"
    assert [list(place.rglob("*")) for place in places.values()] == [[], [], []]


@pytest.mark.parametrize("content", ["no engine", None])
def test_the_command_that_rebuilds_can_be_run(
    backend: backends.Backend, tmp_path: Path, content: str | None
) -> None:
    path = engine_path(tmp_path, "decoder", "static", ".onnx", Resolution(64, 96))
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(EngineError) as caught:
        backend.open(path)
    assert (
        "qvae build --mode static --resolution 96x64 --part decoder "
        f"--backend onnxruntime --engine-dir {tmp_path}"
    ) in str(caught.value.fix)


def test_options_that_mean_nothing_are_told(backend: backends.Backend, tmp_path: Path) -> None:
    graph = small_graphs.decoder(tmp_path / "d.onnx")
    assert backend.build(graph, tmp_path / "e.onnx", spec()).warnings == ()
    given = spec(level=2, timing_cache=tmp_path / "cache")
    assert backend.build(graph, tmp_path / "e.onnx", given).warnings == (
        "level not used: onnxruntime has no builder levels",
        "timing cache not used: onnxruntime takes no timings while building",
    )
    assert not (tmp_path / "cache").exists()
