"""What an engine captures of itself: by the driver, past PyTorch, and never in the way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from doubles import FakeSession, FakeStream, engine_of, fixed
from fake_cuda import CONTEXT, STREAM, FakeCuda

from qvae_trt.backends import devices
from qvae_trt.errors import ExecutionError
from qvae_trt.runtime import graphs
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.graphs import CapturedRun, Captures, captures
from qvae_trt.runtime.memory import Scratch
from qvae_trt.tensors import ShapeRange

CPU = torch.device("cpu")
ONES = torch.ones(1, 3, 1, 8, 8)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _name: fake)
    for kept in (devices._driver, graphs._capture_stream):
        kept.cache_clear()
    yield fake
    for kept in (devices._driver, graphs._capture_stream):
        kept.cache_clear()


@pytest.fixture
def session(cuda) -> FakeSession:
    return FakeSession(fixed(1, 3, 1, 8, 8), scratch_bytes=lambda _: 512, cuda=cuda)


@pytest.fixture
def scratch() -> Scratch:
    return Scratch(CPU)


@pytest.fixture
def engine(session, scratch, tmp_path) -> Iterator[Engine]:
    """Captures itself, without a GPU: PyTorch's part is on the CPU."""
    file = tmp_path / "vae_decoder.trt"
    file.write_bytes(b"x")
    engine = engine_of(session, file, scratch=scratch)
    engine.wants_graph = True
    yield engine
    engine.close()


def run(engine: Engine, value: float = 1.0, stream: int = 5) -> float:
    y = engine.enqueue(ONES * value, 0, FakeStream(stream))
    assert float(y.std()) == 0.0
    return float(y.mean())


# --- the driver
# -------------------------------------------------------------------------------------


def test_a_capture_leaves_its_executable_graph_and_nothing_else(cuda):
    ran: list[str] = []
    graph = devices.capture(STREAM, lambda: cuda.capturing[STREAM].append(lambda: ran.append("x")))
    assert (cuda.capturing, cuda.graphs, list(cuda.executables)) == ({}, {}, [graph])
    devices.launch(graph, STREAM)
    devices.launch(graph, 0)
    assert ran == ["x", "x"]
    assert cuda.launches == [(graph, STREAM), (graph, 0)]
    devices.destroy(graph)
    assert cuda.executables == {}


@pytest.mark.parametrize(
    "name",
    [
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
    ],
)
def test_a_capture_that_the_driver_refuses_leaves_nothing(cuda, name):
    cuda.fails[name] = 901
    with pytest.raises(RuntimeError, match=f"{name}: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        devices.capture(STREAM, lambda: None)
    assert (cuda.capturing, cuda.graphs, cuda.executables) == ({}, {}, {})


@pytest.mark.parametrize("end", [0, 901])
@pytest.mark.parametrize("error", [ExecutionError("no"), KeyboardInterrupt()])
def test_a_capture_of_what_raises_leaves_nothing_and_raises_it(cuda, error, end):
    if end:
        cuda.fails["cuStreamEndCapture"] = end

    def enqueue() -> None:
        raise error

    with pytest.raises(type(error)):
        devices.capture(STREAM, enqueue)
    assert (cuda.capturing, cuda.graphs, cuda.executables) == ({}, {}, {})


@pytest.mark.parametrize("name", ["cuGraphLaunch", "cuGraphExecDestroy"])
def test_a_graph_that_the_driver_refuses_is_said(cuda, name):
    graph = devices.capture(STREAM, lambda: None)
    cuda.fails[name] = 1
    with pytest.raises(RuntimeError, match=f"{name}: CUDA_ERROR_X"):
        devices.launch(graph, STREAM)
        devices.destroy(graph)


def test_a_thread_without_a_context_gets_that_of_its_device(cuda):
    devices.ensure_context(1)
    assert (cuda.current, cuda.retained) == (CONTEXT, []), "it has one"
    cuda.current = None
    devices.ensure_context(1)
    assert (cuda.current, cuda.retained) == (CONTEXT + 11, [1])


@pytest.mark.parametrize("lacks", ["driver", "graphs"])
def test_an_old_driver_or_none_is_said(cuda, monkeypatch, lacks):
    def load(name: str) -> object:
        if lacks == "driver":
            raise OSError(f"{name}: cannot open shared object file")
        return SimpleNamespace()

    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    with pytest.raises(RuntimeError, match="has no cuStreamBeginCapture_v2"):
        devices.capture(STREAM, lambda: None)


# --- an engine
# --------------------------------------------------------------------------------------


def test_an_engine_captures_itself_at_the_second_run_on_one_scratch_buffer(engine, scratch, cuda):
    assert [run(engine, v) for v in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    (first,) = cuda.executables
    assert cuda.launches == [(first, 5), (first, 5)], "on the caller's stream"
    assert cuda.names.count("cuStreamBeginCapture_v2") == 1
    scratch.reserve(4096, None)  # grown by another engine: moved
    assert [run(engine, v) for v in (4.0, 5.0)] == [4.0, 5.0]
    (second,) = cuda.executables
    assert second != first, "TensorRT sees the new buffer before it is captured"
    assert [graph for graph, _ in cuda.launches] == [first, first, second]
    engine.close()
    assert cuda.executables == {}


@pytest.mark.parametrize("fails", ["the run", "the output's shape"])
def test_after_a_run_that_failed_the_graph_is_captured_anew(
    engine, session, cuda, monkeypatch, fails
):
    """The context may have been given another shape or address by then."""
    assert [run(engine, v) for v in (1.0, 2.0)] == [1.0, 2.0]
    (first,) = cuda.executables

    def refuse(*_given: object) -> None:
        raise ExecutionError("no")

    with monkeypatch.context() as patch, pytest.raises(ExecutionError, match="no"):
        if fails == "the run":
            cuda.fails["cuGraphLaunch"] = 1
            session.on_execute = refuse
        else:
            patch.setattr(session, "output_shape", refuse)
        run(engine)
    cuda.fails.clear()
    session.on_execute, engine.wants_graph = None, True
    launched = len(cuda.launches)
    assert run(engine, 3.0) == 3.0
    assert len(cuda.launches) == launched, "TensorRT runs once before it is captured"
    assert run(engine, 4.0) == 4.0
    (second,) = cuda.executables
    assert second != first


@pytest.mark.parametrize("other", ["a shape", "a profile"])
def test_an_engine_with_ranges_replays_one_size_and_captures_anew_after_another(
    cuda, scratch, tmp_path, other
):
    """TensorRT may change what the graph reads when the context runs another shape."""
    sizes = ShapeRange((1, 3, 1, 8, 8), (1, 3, 1, 8, 8), (1, 3, 1, 16, 16))
    file = tmp_path / "vae_decoder.trt"
    file.write_bytes(b"x")
    made = FakeSession((sizes, sizes), scratch_bytes=lambda _: 512, cuda=cuda)
    engine = engine_of(made, file, scratch=scratch)
    engine.wants_graph = True
    second = (torch.ones(1, 3, 1, 16, 8), 0) if other == "a shape" else (ONES, 1)
    launches: list[int] = []

    def serve(x: torch.Tensor, profile: int, value: float) -> None:
        y = engine.enqueue(x * value, profile, FakeStream(5))
        assert tuple(y.shape) == (1, 2, *x.shape[2:])
        assert (float(y.mean()), float(y.std())) == (value, 0.0)
        launches.append(len(cuda.launches))

    for value in (1.0, 2.0, 3.0, 4.0):
        serve(ONES, 0, value)
    assert launches == [0, 0, 1, 2], "captured at the third run of the size"
    (first,) = cuda.executables
    for value in (5.0, 6.0):
        serve(*second, value)
        serve(ONES, 0, value)
    assert launches[4:] == [2] * 4, "none of two sizes in turns"
    for value in (7.0, 8.0, 9.0, 10.0):
        serve(*second, value)
    assert launches[8:] == [2, 2, 3, 4]
    (latest,) = cuda.executables
    assert latest != first, "the first one is freed"
    engine.close()
    assert cuda.executables == {}


def test_captures_have_a_stream_that_pytorch_never_hands_out(engine, cuda):
    """Of PyTorch's own, the 33rd is the first again: another thread's work would be captured."""
    for _ in range(2):
        on: list[int] = []
        CapturedRun.capture(
            lambda *given: on.append(given[2]),  # noqa: B023  called at once
            x=ONES,
            y=ONES,
        )
        assert on == [STREAM]
    assert cuda.names.count("cuStreamCreate") == 1, "one for all captures of a GPU"


def test_pytorch_takes_no_part(engine, monkeypatch):
    """Its capture leaves the generators and the allocator capturing where it fails, and empties the
    cache of the whole process.
    """

    def used(*_given: object, **_options: object) -> None:
        raise AssertionError("PyTorch was asked")

    for name in (
        "graph",
        "CUDAGraph",
        "set_stream",
        "synchronize",
        "empty_cache",
        "ExternalStream",
    ):
        monkeypatch.setattr(torch.cuda, name, used)
    assert [run(engine, v) for v in (1.0, 2.0, 3.0)] == [1.0, 2.0, 3.0]
    assert engine.held.graph is not None


@pytest.mark.parametrize(
    "what",
    [
        "the run",
        "cuCtxGetCurrent",
        "cuStreamCreate",
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphLaunch",
    ],
)
def test_an_engine_that_cannot_be_captured_runs_on(engine, session, cuda, caplog, what):
    run(engine)

    def refuse(_session: FakeSession) -> None:
        if cuda.capturing:
            raise ExecutionError("not in a capture")

    if what == "the run":
        session.on_execute = refuse
    else:
        cuda.fails[what] = 901
    with caplog.at_level(logging.WARNING):
        assert [run(engine, v) for v in (2.0, 3.0, 4.0)] == [2.0, 3.0, 4.0]
    assert len(caplog.records) == 1, "not tried again"
    assert "runs without a CUDA graph" in caplog.text
    assert cuda.launches == []
    assert cuda.capturing == {}
    engine.close()
    assert (cuda.graphs, cuda.executables) == ({}, {})


def test_where_the_ordinary_run_fails_too_it_is_the_engines_error(engine, session, cuda):
    run(engine)
    run(engine)
    cuda.fails["cuGraphLaunch"] = 1

    def refuse(_session: FakeSession) -> None:
        raise ExecutionError("the engine failed")

    session.on_execute = refuse
    with pytest.raises(ExecutionError, match="the engine failed"):
        run(engine)


def test_a_graph_captured_in_inference_mode_serves_outside_of_it(engine, cuda):
    with torch.inference_mode():
        assert [run(engine, v) for v in (1.0, 2.0)] == [1.0, 2.0]
    with torch.no_grad():
        assert run(engine, 3.0) == 3.0
    assert run(engine, 4.0) == 4.0
    assert len(cuda.launches) == 3


def test_a_replay_keeps_no_history_of_gradients(engine, cuda):
    run(engine)
    engine.enqueue(ONES.clone().requires_grad_(), 0, FakeStream(5))
    assert len(cuda.launches) == 1
    assert not engine.held.graph.x.requires_grad


@pytest.mark.parametrize(
    ("given", "wants"),
    [
        ({}, True),
        ({"capturable": False}, False),
    ],
)
def test_a_backend_that_waits_for_the_stream_is_not_captured(tmp_path, given, wants):
    file = tmp_path / "vae_decoder.trt"
    file.write_bytes(b"x")
    made = FakeSession(fixed(1, 3, 1, 8, 8), **given)
    engine = engine_of(made, file, device=torch.device("cuda", 0), cuda_graph=True)
    assert engine.wants_graph is wants


# --- captures, and what waits for the device
# --------------------------------------------------------


def test_loading_an_engine_does_not_stop_those_that_are_loaded(engine, cuda):
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()
    run(engine)

    def load_another() -> None:
        with captures.none():  # what Engine.open holds for seconds
            inside.set()
            leave.wait(20)

    def serve() -> None:
        run(engine)
        done.set()

    threads = [threading.Thread(target=f, daemon=True) for f in (load_another, serve)]
    threads[0].start()
    inside.wait(20)
    threads[1].start()
    served = done.wait(15)
    leave.set()
    for thread in threads:
        thread.join(20)
    assert served
    assert cuda.launches == []
    run(engine)
    assert len(cuda.launches) == 1, "captured at the next run"


def test_a_capture_and_what_waits_for_the_device_are_never_at_once():
    apart, inside, wrong = Captures(), {"one": 0, "none": 0}, []
    entered = {"one": 0, "none": 0}
    lock = threading.Lock()

    def work(kind: str) -> None:
        for _ in range(300):
            with getattr(apart, kind)() as alone:
                if kind == "one" and not alone:
                    continue
                with lock:
                    entered[kind] += 1
                    inside[kind] += 1
                    if inside["one"] and (inside["one"] > 1 or inside["none"]):
                        wrong.append(dict(inside))
                with lock:
                    inside[kind] -= 1

    threads = [threading.Thread(target=work, args=(k,)) for k in ("one", "one", "none", "none")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert inside == {"one": 0, "none": 0}
    assert entered["none"] == 600
    assert entered["one"] > 0


def test_what_waits_for_the_device_does_so_side_by_side_and_after_a_capture():
    apart, met, done = Captures(), threading.Barrier(2, timeout=10), threading.Event()

    def load() -> None:
        with apart.none():
            met.wait()
            done.set()

    threads = [threading.Thread(target=load, daemon=True) for _ in range(2)]
    with apart.one() as alone:
        assert alone
        for thread in threads:
            thread.start()
        assert not done.wait(0.2)
        with apart.one() as again:
            assert not again
        assert not done.wait(0.1), "the second did not end the first"
    for thread in threads:
        thread.join(10)
    assert done.is_set()
