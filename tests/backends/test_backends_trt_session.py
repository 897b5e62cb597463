"""Loading and running through the adapter, on every TensorRT that it is for."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from fake_gpus import H200, RTX_4090, put_gpu

from qvae_trt import backends
from qvae_trt.backends import Device
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    StaleEngineError,
)
from qvae_trt.profiles import Resolution, engine_path
from qvae_trt.tensors import ShapeRange, TensorSpec

WIDE = ((1, 4, 1, 4, 4), (1, 4, 1, 16, 16), (1, 4, 1, 32, 32))
SMALL = ((1, 4, 1, 4, 4), (1, 4, 1, 8, 8), (1, 4, 1, 12, 12))
ALIGNED = 1 << 20


def write_plan(trt: Any, path: Path, **settings: Any) -> Path:
    settings.setdefault("shape", (1, 4, 1, -1, -1))
    settings.setdefault("ranges", (WIDE, SMALL))
    path.write_bytes(fake_tensorrt.plan(trt.fake.variant, **settings))
    return path


@pytest.fixture
def engine(trt: Any, tmp_path: Path) -> Path:
    return write_plan(trt, tmp_path / "e.trt")


@pytest.fixture
def session(backend: backends.Backend, engine: Path) -> backends.Session:
    return backend.open(engine)


def run(session: backends.Session, shape: tuple[int, ...], profile: int = 0, **given: Any) -> Any:
    needed = session.select(shape, profile, 7)
    x = np.full(shape, 2, np.float16)
    y = np.zeros(session.output_shape(), np.float16)
    session.execute(
        **{
            "input_ptr": x.ctypes.data,
            "output_ptr": y.ctypes.data,
            "scratch_ptr": ALIGNED,
            "scratch_bytes": needed,
            "stream": 7,
            **given,
        }
    )
    return y


def test_what_it_is(session: backends.Session) -> None:
    assert session.input == TensorSpec("latents", "float16", (1, 4, 1, -1, -1))
    assert session.output == TensorSpec("images", "float16", (1, 3, 1, -1, -1))
    assert session.ranges == (ShapeRange(*WIDE), ShapeRange(*SMALL))
    assert session.device_type == "cuda"


def test_runs(trt: Any, session: backends.Session) -> None:
    y = run(session, (1, 4, 1, 8, 9))
    assert y.shape == (1, 3, 1, 64, 72)
    assert (y == 2).all()
    assert trt.fake.of("IExecutionContext.execute_async_v3")[0].args == (7,)


def test_context_owns_no_scratch(trt: Any, session: backends.Session) -> None:
    if trt.fake.variant == "8.6":
        assert trt.fake.of("ICudaEngine.create_execution_context_without_device_memory")
        assert not trt.fake.of("ICudaEngine.create_execution_context")
    else:
        (call,) = trt.fake.of("ICudaEngine.create_execution_context")
        assert call.args == ("USER_MANAGED",)


def test_scratch_is_of_exactly_this_shape(trt: Any, session: backends.Session) -> None:
    small, large = session.select((1, 4, 1, 8, 8), 1), session.select((1, 4, 1, 32, 32), 0)
    if trt.fake.variant == "8.6":  # it only knows the largest
        assert small == large == trt.fake.scratch_bytes(WIDE[2])
    else:
        assert small == trt.fake.scratch_bytes((1, 4, 1, 8, 8))
        assert large == trt.fake.scratch_bytes((1, 4, 1, 32, 32))


def test_scratch_is_handed_over(trt: Any, session: backends.Session) -> None:
    run(session, (1, 4, 1, 8, 9), scratch_bytes=1 << 20)
    if trt.fake.variant in ("8.6", "10.0"):
        assert [c.args for c in trt.fake.of("IExecutionContext.device_memory")] == [(ALIGNED,)]
    else:
        handed = [c.args for c in trt.fake.of("IExecutionContext.set_device_memory")]
        assert handed == [(ALIGNED, 1 << 20)]


def test_scratch_is_handed_over_again_when_it_or_the_shape_changes(
    trt: Any, session: backends.Session
) -> None:
    def handed() -> int:
        names = ("IExecutionContext.device_memory", "IExecutionContext.set_device_memory")
        return sum(len(trt.fake.of(name)) for name in names)

    run(session, (1, 4, 1, 8, 9))
    run(session, (1, 4, 1, 8, 9))
    assert handed() == 1
    run(session, (1, 4, 1, 8, 9), scratch_ptr=2 * ALIGNED)
    assert handed() == 2
    run(session, (1, 4, 1, 8, 10), scratch_ptr=2 * ALIGNED)
    assert handed() == 3


def test_an_engine_without_scratch(trt: Any, session: backends.Session) -> None:
    trt.fake.scratch_bytes = lambda _shape: 0
    assert session.select((1, 4, 1, 8, 8), 0) == 0
    with pytest.raises(ExecutionError, match="no device memory"):
        run(session, (1, 4, 1, 8, 8), scratch_ptr=0)  # the fake wants some; nothing was handed over
    assert not trt.fake.of("IExecutionContext.set_device_memory")


def test_order_of_calls(trt: Any, session: backends.Session) -> None:
    """TensorRT sizes its memory from profile and shape, and takes memory after that only."""
    run(session, (1, 4, 1, 8, 8), 1)
    calls = [n.split(".")[1] for n in trt.fake.names() if n.startswith("IExecutionContext.")]
    wanted = ["nvtx_verbosity", "set_optimization_profile_async", "set_input_shape"]
    if trt.fake.variant != "8.6":
        wanted.append("update_device_memory_size_for_shapes")
    kept = [c for c in calls if c != "get_tensor_shape"]
    assert kept[: len(wanted)] == wanted
    assert kept[len(wanted)] in ("device_memory", "set_device_memory")
    assert kept[-1] == "execute_async_v3"


def test_select_is_free_the_second_time(trt: Any, session: backends.Session) -> None:
    first = session.select((1, 4, 1, 8, 8), 1)
    before = len(trt.fake.calls)
    assert session.select((1, 4, 1, 8, 8), 1) == first
    assert len(trt.fake.calls) == before


def test_back_to_a_profile_and_its_size_sets_nothing(trt: Any, session: backends.Session) -> None:
    """Each profile keeps a context of its own, with its shape and its scratch."""
    sizes = ((1, 4, 1, 8, 8), 1), ((1, 4, 1, 20, 20), 0)
    for shape, profile in sizes:
        assert (run(session, shape, profile) == 2).all()
    assert trt.fake.live["IExecutionContext"] == 2
    switched = [c.args for c in trt.fake.of("IExecutionContext.set_optimization_profile_async")]
    assert switched == [(1, 7), (0, 7)]
    before = len(trt.fake.calls)
    for shape, profile in sizes * 2:
        assert (run(session, shape, profile) == 2).all()
    again = {name.split(".")[1] for name in trt.fake.names()[before:]}
    assert again == {"get_tensor_shape", "set_tensor_address", "execute_async_v3"}


@pytest.mark.parametrize(
    ("message", "kind"), [("", ExecutionError), ("OutOfMemory", DeviceMemoryError)]
)
def test_a_profile_whose_context_cannot_be_made_has_failed_to_run(
    trt: Any, session: backends.Session, message: str, kind: type[Exception]
) -> None:
    """So that it is noted and left alone, as every run that fails."""
    session.select((1, 4, 1, 8, 8), 1)
    call = "ICudaEngine.create_execution_context"
    call += "_without_device_memory" if trt.fake.variant == "8.6" else ""
    trt.fake.fail[call] = True
    trt.fake.messages[call] = f"[E] 2: [virtualMemoryBuffer.cpp] Error Code 2: {message}"
    with pytest.raises(kind, match="no execution context"):
        session.select((1, 4, 1, 20, 20), 0)
    assert session.select((1, 4, 1, 8, 8), 1) >= 0


def test_another_size_of_a_profile_sets_the_shape_alone(
    trt: Any, session: backends.Session
) -> None:
    for shape in ((1, 4, 1, 8, 8), (1, 4, 1, 9, 9), (1, 4, 1, 8, 8)):
        session.select(shape, 0, 5)
    assert len(trt.fake.of("IExecutionContext.set_input_shape")) == 3
    assert not trt.fake.of("IExecutionContext.set_optimization_profile_async")
    assert trt.fake.live["IExecutionContext"] == 1


@pytest.mark.parametrize(
    ("shape", "profile", "words"),
    [
        ((1, 4, 1, 33, 8), 0, r"dimension 3 is 33, expected 4\.\.32 \(profile 0\)"),
        ((1, 4, 1, 13, 8), 1, r"dimension 3 is 13, expected 4\.\.12 \(profile 1\)"),
        ((2, 4, 1, 8, 8), 0, r"dimension 0 is 2, expected 1\.\.1"),
        ((1, 4, 8, 8), 0, "4 dimensions, expected 5"),
        ((1, 4, 1, 8, 8), 2, "profile 2: the engine has 2"),
        ((1, 4, 1, 8, 8), -1, "profile -1: the engine has 2"),
    ],
)
def test_shapes_outside_never_reach_tensorrt(
    trt: Any, session: backends.Session, shape: tuple[int, ...], profile: int, words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        session.select(shape, profile)
    assert "IExecutionContext.set_input_shape" not in trt.fake.names()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("set_optimization_profile_async", "refused profile 1"),
        ("set_input_shape", r"refused the shape \[1, 4, 1, 8, 8\]"),
        ("set_tensor_address", "refused the address of latents"),
        ("execute_async_v3", r"failed on latents \[1, 4, 1, 8, 8\]"),
    ],
)
def test_every_returned_false_is_an_error(
    trt: Any, session: backends.Session, call: str, words: str
) -> None:
    trt.fake.fail[f"IExecutionContext.{call}"] = 1
    trt.fake.messages[f"IExecutionContext.{call}"] = "Error Code 3: API usage"
    with pytest.raises(ExecutionError, match=f"{words}.*Error Code 3: API usage"):
        run(session, (1, 4, 1, 8, 8), 1)
    assert (run(session, (1, 4, 1, 8, 8), 1) == 2).all()  # and the next call is whole again


def test_refused_scratch_is_seen_before_anything_runs(trt: Any, session: backends.Session) -> None:
    if trt.fake.variant in ("8.6", "10.0"):
        pytest.skip("there scratch is a property, which the fake refuses by exception")
    trt.fake.fail["IExecutionContext.set_device_memory"] = 1
    trt.fake.messages["IExecutionContext.set_device_memory"] = "must be aligned on 512 bytes"
    with pytest.raises(ExecutionError, match=r"refused its scratch memory.*aligned on 512"):
        run(session, (1, 4, 1, 8, 8))
    assert trt.fake.of("IExecutionContext.execute_async_v3") == []
    assert (run(session, (1, 4, 1, 8, 8)) == 2).all()


def test_no_scratch_for_an_engine_that_takes_some_is_a_failure(
    trt: Any, session: backends.Session
) -> None:
    trt.fake.scratch_bytes = lambda shape: 0 if shape == (1, 4, 1, 8, 8) else 4096
    if trt.fake.variant == "8.6":
        assert session.select((1, 4, 1, 8, 8), 0) == 4096
        return
    with pytest.raises(ExecutionError, match="does not say how much scratch"):
        session.select((1, 4, 1, 8, 8), 0)


def test_layers_are_not_marked_at_every_run(trt: Any, session: backends.Session) -> None:
    assert session.input.name == "latents"
    assert [c.args for c in trt.fake.of("IExecutionContext.nvtx_verbosity")] == [("NONE",)]


def test_an_error_that_is_only_logged_is_an_error(trt: Any, session: backends.Session) -> None:
    def log_and_compute(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        trt.fake.logger.log(trt.ILogger.Severity.ERROR, "kernel launch failed")
        return np.zeros(shape, np.float16)

    trt.fake.compute = log_and_compute
    with pytest.raises(ExecutionError, match="kernel launch failed"):
        run(session, (1, 4, 1, 8, 8))


def test_out_of_memory_while_running(trt: Any, session: backends.Session) -> None:
    trt.fake.fail["IExecutionContext.execute_async_v3"] = True
    trt.fake.messages["IExecutionContext.execute_async_v3"] = "Cuda Runtime (out of memory)"
    with pytest.raises(DeviceMemoryError, match="out of memory"):
        run(session, (1, 4, 1, 8, 8))


def test_an_error_of_another_thread_is_not_taken(trt: Any, session: backends.Session) -> None:
    def other() -> None:
        trt.fake.logger.log(trt.ILogger.Severity.ERROR, "someone else's failure")

    def compute(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        return np.full(shape, 2, np.float16)

    trt.fake.compute = compute
    assert (run(session, (1, 4, 1, 8, 8)) == 2).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"scratch_bytes": 1}, "scratch of 1 bytes at 0x100000"),
        ({"scratch_ptr": ALIGNED + 256}, "aligned to 512"),
    ],
)
def test_scratch_that_will_not_do(
    trt: Any, session: backends.Session, given: dict[str, int], words: str
) -> None:
    with pytest.raises(EngineError, match=words):
        run(session, (1, 4, 1, 8, 8), **given)
    assert "IExecutionContext.execute_async_v3" not in trt.fake.names()


def test_close_frees_engine_and_context(trt: Any, session: backends.Session) -> None:
    run(session, (1, 4, 1, 8, 8))
    assert trt.fake.live == {"ICudaEngine": 1, "IExecutionContext": 1}
    session.close()
    gc.collect()
    assert trt.fake.live == {"ICudaEngine": 0, "IExecutionContext": 0}
    session.close()


def test_a_static_engine(trt: Any, backend: backends.Backend, tmp_path: Path) -> None:
    fixed = (1, 4, 1, 16, 24)
    path = write_plan(
        trt, tmp_path / "s.trt", shape=fixed, out_shape=(1, 3, 1, 128, 192), ranges=()
    )
    session = backend.open(path)
    assert session.ranges == (ShapeRange.fixed(fixed),)
    assert run(session, fixed).shape == (1, 3, 1, 128, 192)
    with pytest.raises(EngineError, match=r"dimension 4 is 25, expected 24\.\.24"):
        session.select((1, 4, 1, 16, 25), 0)


# --- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"{}", b'{"magic": "fake-tensorrt"'])
def test_a_file_that_is_no_engine(
    backend: backends.Backend, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "e.trt").write_bytes(content)
    with pytest.raises(EngineError, match=r"e\.trt: ") as caught:
        backend.open(tmp_path / "e.trt")
    assert "qvae build" in str(caught.value.fix)
    assert not isinstance(caught.value, StaleEngineError)


def test_a_missing_file(backend: backends.Backend, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        backend.open(tmp_path / "e.trt")


def test_an_engine_of_another_version(trt: Any, backend: backends.Backend, tmp_path: Path) -> None:
    path = engine_path(tmp_path, "decoder", "static", ".trt", Resolution(64, 96))
    path.parent.mkdir(parents=True)
    write_plan(trt, path, version="9.9.9")
    with pytest.raises(StaleEngineError, match=r"got 9\.9\.9") as caught:
        backend.open(path)
    assert caught.value.fix == (
        "build it again: qvae build --mode static --resolution 96x64 --part decoder "
        f"--backend {backend.name} --engine-dir {tmp_path} --force"
    )


@pytest.mark.parametrize(
    "call", ["Runtime.deserialize_cuda_engine", "ICudaEngine.create_execution_context"]
)
def test_out_of_memory_while_loading(
    trt: Any, backend: backends.Backend, engine: Path, call: str
) -> None:
    if trt.fake.variant == "8.6" and "create_" in call:
        call += "_without_device_memory"
    trt.fake.fail[call] = True
    trt.fake.messages[call] = "[E] 2: [virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory"
    with pytest.raises(DeviceMemoryError, match="OutOfMemory"):
        backend.open(engine)


def test_run_time_that_does_not_start(trt: Any, backend: backends.Backend, engine: Path) -> None:
    trt.fake.fail["Runtime"] = True
    with pytest.raises(BackendError, match="does not start"):
        backend.open(engine)


def test_an_engine_of_integers(trt: Any, backend: backends.Backend, tmp_path: Path) -> None:
    path = write_plan(trt, tmp_path / "e.trt", dtype="INT32")
    with pytest.raises(EngineError, match="tensor latents is INT32"):
        backend.open(path)


def test_inspect(trt: Any, backend: backends.Backend, engine: Path) -> None:
    report = backend.open(engine).inspect()
    assert json.loads(json.dumps(report)) == report
    assert report["layers"] == ["conv"]
    assert report["input"] == {"name": "latents", "dtype": "float16", "shape": [1, 4, 1, -1, -1]}
    assert [p["max"] for p in report["profiles"]] == [list(WIDE[2]), list(SMALL[2])]  # type: ignore[attr-defined]
    largest = trt.fake.scratch_bytes
    assert report["scratch_bytes"] == largest(WIDE[2])
    each = None if trt.fake.variant == "8.6" else [largest(WIDE[2]), largest(SMALL[2])]
    assert report["profile_scratch_bytes"] == each


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["8.6", "10.16", "11.4"])
def test_no_gpu(variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_gpu(monkeypatch, None)
    with fake_tensorrt.installed(variant):
        backend = backends.get("tensorrt")
        for verdict in (backend.can_build(), backend.can_run()):
            assert not verdict.ok
            assert "needs an NVIDIA GPU; no NVIDIA driver" in verdict.reason
            assert verdict.fix == "on this machine: --backend onnxruntime"
        assert backend.device() is None
        (tmp_path / "e.trt").write_bytes(b"x")
        with pytest.raises(BackendError, match="running needs an NVIDIA GPU"):
            backend.open(tmp_path / "e.trt")


def test_rtx_builds_without_a_gpu_and_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, None)
    with fake_tensorrt.installed("rtx"):
        backend = backends.get("tensorrt_rtx")
        assert backend.can_build().ok
        assert not backend.can_run().ok


@pytest.mark.parametrize(
    ("capability", "runs"),
    [("7.5", False), ("8.0", True), ("8.6", True), ("8.9", True), ("9.0", False), ("12.0", True)],
)
def test_where_rtx_runs(capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, Device("GPU", capability))
    with fake_tensorrt.installed("rtx"):
        verdict = backends.get("tensorrt_rtx").can_run()
    assert verdict.ok is runs
    if not runs:
        assert f"compute capability {capability}; expected 8.0" in verdict.reason
        assert verdict.fix == "--backend tensorrt"


def test_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6"):
        assert backends.get("tensorrt").identity() == {
            "flavour": "tensorrt",
            "flavour_version": "8.6.1",
            "gpu": "NVIDIA H200",
            "compute_capability": "9.0",
        }
    put_gpu(monkeypatch, RTX_4090)
    with fake_tensorrt.installed("rtx"):  # a plan of RTX fits all that RTX runs on
        assert backends.get("tensorrt_rtx").identity() == {
            "flavour": "tensorrt_rtx",
            "flavour_version": "1.7.1.116",
            "gpu": "any",
            "compute_capability": None,
        }


def test_a_lean_run_time_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("11.4") as trt:
        del trt.Builder
        verdict = backends.get("tensorrt").can_build()
    assert not verdict.ok
    assert "runs engines only" in verdict.reason
