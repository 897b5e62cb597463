"""Inside a caller's CUDA graph nothing is loaded, closed or held against an engine; and what an
engine captures of itself.
"""

from __future__ import annotations

import contextlib
import threading
import warnings

import pytest
import torch
from doubles import FakeSession, FakeStream, Faulty, fixed
from ort_engines import STATIC, tiny

from qvae_trt import backends
from qvae_trt.errors import DeviceMemoryError, ExecutionError
from qvae_trt.runtime import engine as engine_module
from qvae_trt.runtime import graphs, selection, serving
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.graphs import CapturedRun, Captures, captures
from qvae_trt.runtime.scratch import Scratch
from qvae_trt.runtime.vae import load_vae

Z = torch.randn((1, 16, 1, *STATIC.latent), generator=torch.Generator().manual_seed(0))


class Capture:
    """Whether the current stream is being captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        for module in (selection, serving):
            monkeypatch.setattr(module, "capturing", lambda _x: self.on)


@pytest.fixture
def capture(monkeypatch):
    return Capture(monkeypatch)


@pytest.fixture
def backend():
    return Faulty(backends.get("onnxruntime"))


@pytest.fixture
def vae(engine_dir, backend):
    return load_vae(engine_dir, model=tiny(), backend=backend, fallback="warn")


def test_nothing_is_loaded_inside(vae, backend, capture):
    capture.on = True
    with pytest.raises(ExecutionError, match="cannot be loaded while a CUDA graph is captured"):
        vae.decode(Z)
    assert backend.opened == []


@pytest.mark.parametrize("error", [ExecutionError("no"), DeviceMemoryError("none left")])
def test_what_goes_wrong_inside_is_raised_and_not_held_against_the_engine(
    vae, backend, capture, error
):
    expected = vae.decode(Z).sample
    capture.on = True

    def fault(what, _path):
        raise error

    backend.fault, sound = fault, backend.fault
    for _ in range(4):  # more often than an engine may fail in a row
        with pytest.raises(type(error)):
            vae.decode(Z)
        assert backend.live == 1, "closing would void the capture"
    capture.on, backend.fault = False, sound
    torch.testing.assert_close(vae.decode(Z).sample, expected, rtol=0, atol=0)
    assert len(backend.opened) == 1


def test_the_budget_waits_until_the_capture_is_over(engine_dir, backend, capture):
    one = (engine_dir / "static/96x64/vae_decoder.onnx").stat().st_size
    vae = load_vae(
        engine_dir, model=tiny(), backend=backend, fallback="raise", memory_budget_bytes=one
    )
    vae.decode(Z)
    cache, _ = vae._server.engines._place(Z.device)
    cache._budget_bytes = 0
    capture.on = True
    vae.decode(Z)
    assert backend.live == 1
    capture.on = False
    vae.decode(Z)
    assert backend.live == 0


def test_no_memory_for_input_or_output_is_a_fallback_as_any_other(vae, backend, monkeypatch):
    def full(_engine: Engine) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_output", full)
    with pytest.warns(FallbackWarning, match=r"no memory free for input and output of vae_dec"):
        y = vae.decode(Z).sample
    torch.testing.assert_close(y, tiny().vae.decode(Z).sample, atol=1e-4, rtol=0)
    assert len(backend.opened) == 2, "tried again after room was made"
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        vae.decode(Z)
    assert len(backend.opened) == 2, "memory came back: the engine was not given up"


def test_an_engine_captures_itself_at_the_second_run_on_one_scratch_buffer(tmp_path, monkeypatch):
    file = tmp_path / "vae_decoder.trt"
    file.write_bytes(b"x")
    session = FakeSession(fixed(1, 3, 1, 8, 8), scratch_bytes=lambda _: 512)
    scratch = Scratch(torch.device("cpu"))
    engine = Engine(session, path=file, scratch=scratch)
    engine._wants_graph = True
    captured: list[int] = []

    class Replay:
        def __init__(self, generation: int) -> None:
            self.generation = generation

        def replay(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y.fill_(7.0)

    def record(execute, *, x, y, generation):
        captured.append(generation)
        return Replay(generation)

    monkeypatch.setattr(CapturedRun, "capture", record)
    x, stream = torch.ones(1, 3, 1, 8, 8), FakeStream(1)

    def run() -> float:
        return float(engine._run(x, 0, stream).mean())

    assert [run(), run(), run()] == [1.0, 7.0, 7.0]
    assert captured == [scratch.generation]
    scratch.reserve(4096, stream)  # grown by another engine: moved
    assert [run(), run()] == [1.0, 7.0], "TensorRT sees the new buffer before it is captured"
    assert captured == [scratch.generation - 1, scratch.generation]


class Card:
    """The streams of a GPU as PyTorch shows them to one thread, and captures on them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.current, self.refuses = 0, "the caller's", False
        monkeypatch.setattr(graphs.devices, "create_stream", self.create)
        monkeypatch.setattr(torch.cuda, "ExternalStream", self.external)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", self.set_stream)

    def create(self) -> int:
        self.made += 1
        return 7

    def external(self, handle: int, *, device: torch.device) -> FakeStream:
        return FakeStream(handle)

    def set_stream(self, stream: object) -> None:
        self.current = stream

    @contextlib.contextmanager
    def graph(self, _graph: object, *, stream: object, capture_error_mode: str):
        """As PyTorch's: it stays on its stream where beginning or ending the capture fails."""
        assert captures._capturing == threading.get_ident(), "nothing else waits meanwhile"
        before, self.current = self.current, stream
        if self.refuses:
            raise RuntimeError("operation not permitted")
        yield
        self.current = before


@pytest.fixture
def card(monkeypatch):
    graphs._capture_stream.cache_clear()
    yield Card(monkeypatch)
    graphs._capture_stream.cache_clear()


def test_captures_have_a_stream_that_pytorch_hands_to_nobody(card):
    """Of PyTorch's own, the 33rd is the first again: another thread's work would be captured."""
    on: list[int] = []
    x = torch.ones(1)
    for generation in (1, 2):
        CapturedRun.capture(lambda *run: on.append(run[2]), x=x, y=x, generation=generation)
    assert on == [7, 7]
    assert card.made == 1, "one for all captures of a GPU"
    assert card.current == "the caller's"


def test_after_a_capture_that_failed_the_thread_is_on_its_own_stream(card):
    card.refuses = True
    x = torch.ones(1)
    with pytest.raises(RuntimeError, match="not permitted"):
        CapturedRun.capture(lambda *_: None, x=x, y=x, generation=1)
    assert card.current == "the caller's"


def test_an_engine_that_cannot_be_captured_runs_on(tmp_path, monkeypatch):
    file = tmp_path / "vae_decoder.trt"
    file.write_bytes(b"x")
    engine = Engine(FakeSession(fixed(1, 3, 1, 8, 8)), path=file)
    engine._wants_graph = True
    tries: list[int] = []

    def refuse(execute, *, x, y, generation):
        tries.append(generation)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine_module.CapturedRun, "capture", refuse)
    stream = FakeStream(1)
    for _ in range(4):
        assert float(engine._run(torch.ones(1, 3, 1, 8, 8), 0, stream).mean()) == 1.0
    assert len(tries) == 1


def test_a_capture_and_what_waits_for_the_device_are_never_at_once():
    apart, inside, wrong = Captures(), {"one": 0, "none": 0}, []
    lock = threading.Lock()

    def work(kind: str) -> None:
        for _ in range(300):
            with getattr(apart, kind)():
                with lock:
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


def test_engines_load_side_by_side_and_inside_a_capture_of_the_same_thread():
    apart, met = Captures(), threading.Barrier(2, timeout=10)

    def load() -> None:
        with apart.none():
            met.wait()

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not met.broken
    with apart.one(), apart.none():
        pass


def test_loading_and_closing_wait_for_a_capture(vae, backend):
    done = threading.Event()

    def use() -> None:
        vae.decode(Z)
        vae.release_memory()
        done.set()

    user = threading.Thread(target=use, daemon=True)
    with captures.one():
        user.start()
        assert not done.wait(0.3)
        assert backend.opened == []
    assert done.wait(30)
    assert (len(backend.opened), backend.live) == (1, 0)
