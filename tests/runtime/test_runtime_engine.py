"""One engine on the current stream: shapes, dtypes, ownership, and every call TensorRT gets."""

from __future__ import annotations

import gc
import threading
from contextlib import nullcontext
from types import SimpleNamespace

import fake_tensorrt
import pytest
import torch
from doubles import FakeSession, FakeStream, engine_of, fixed
from fake_gpus import H200, put_gpu

from qvae_trt.backends.tensorrt import TensorRT
from qvae_trt.errors import EngineError, ExecutionError, ForeignEngineError
from qvae_trt.opening import Wanted
from qvae_trt.runtime import engine as engine_module
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.graphs import captures
from qvae_trt.runtime.memory import Scratch, shared_scratch
from qvae_trt.tensors import ShapeRange

CPU = torch.device("cpu")
RANGE = fixed(1, 3, 1, 8, 8)
RANGES = (((1, 16, 1, 4, 4), (1, 16, 1, 8, 8), (1, 16, 1, 16, 16)), ((1, 16, 1, 12, 12),) * 3)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "vae_decoder.trt"
    path.write_bytes(b"x" * 10)
    return path


def make(file, session: FakeSession) -> Engine:
    return engine_of(session, file)


def test_the_first_run_of_a_profile_waits_for_a_capture_and_the_next_does_not(file):
    """Of another thread: it makes an execution context, which would void the capture."""
    engine = make(file, FakeSession(RANGE * 2))
    x, done = torch.ones(1, 3, 1, 8, 8), threading.Event()

    def run_both() -> None:
        for profile in (0, 1):
            engine.run(x, profile=profile)
        done.set()

    engine.run(x, profile=0)
    with captures.one() as alone:
        assert alone
        engine.run(x, profile=0)
        threading.Thread(target=run_both, daemon=True).start()
        assert not done.wait(0.2)
    assert done.wait(30)


def test_an_engine_takes_its_turns_on_the_scratch_of_its_device(file):
    device = torch.device("cuda", 1)
    engine = engine_of(FakeSession(fixed(1, 3, 1, 8, 8)), file, device=device)
    engine._finalizer.detach()  # it cannot be freed where there is no such device
    assert engine._scratch is engine.held.scratch is shared_scratch(device)


def test_the_result_belongs_to_the_caller(file):
    engine = make(file, FakeSession(fixed(1, 3, 1, 8, 8)))
    first = engine.run(torch.ones(1, 3, 1, 8, 8))
    second = engine.run(torch.full((1, 3, 1, 8, 8), 2.0))
    assert first.data_ptr() != second.data_ptr()
    assert float(first.mean()) == 1.0
    assert float(second.mean()) == 2.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_and_layout_goes_in(file, dtype):
    engine = make(file, FakeSession(fixed(1, 3, 1, 8, 8)))
    x = (
        torch.arange(3 * 64, dtype=torch.float32)
        .reshape(1, 8, 8, 1, 3)
        .permute(0, 4, 3, 1, 2)
        .to(dtype)
    )
    assert not x.is_contiguous()
    y = engine.run(x)
    assert y.dtype == torch.float32, "the engine's own"
    torch.testing.assert_close(y[:, :1], x.float().mean(1, keepdim=True))


@pytest.mark.parametrize("shape", [(2, 3, 1, 8, 8), (3, 1, 8, 8), (1, 3, 1, 8)])
def test_one_picture_of_five_dimensions(file, shape):
    engine = make(file, FakeSession(fixed(1, 3, 1, 8, 8)))
    with pytest.raises(EngineError, match=r"expected (1\.\.1|5)"):
        engine.run(torch.zeros(shape))


def test_a_shape_outside_the_ranges_is_refused(file):
    engine = make(file, FakeSession(fixed(1, 3, 1, 8, 8)))
    with pytest.raises(EngineError, match="expected 8"):
        engine.run(torch.zeros(1, 3, 1, 8, 16))


def test_scratch_is_sized_for_the_shape_in_use(file):
    wide = (ShapeRange((1, 3, 1, 8, 8), (1, 3, 1, 8, 8), (1, 3, 1, 64, 64)),)
    session = FakeSession(wide, scratch_bytes=lambda shape: 4 * shape[3] * shape[4])
    scratch = Scratch(CPU)
    engine = engine_of(session, file, scratch=scratch)
    engine.run(torch.zeros(1, 3, 1, 8, 8))
    assert scratch.bytes == 256, "not the largest shape's"
    engine.run(torch.zeros(1, 3, 1, 16, 8))
    assert scratch.bytes == 512
    engine.run(torch.zeros(1, 3, 1, 8, 8))
    assert scratch.bytes == 512
    sizes = [call[2] for call in session.calls if call[0] == "execute"]
    assert sizes == [256, 512, 256]


def test_engines_of_one_device_share_scratch_and_take_turns(file):
    scratch = Scratch(CPU)
    running: list[int] = []

    def alone(session: FakeSession) -> None:
        running.append(id(session))
        assert len(running) == 1, "two engines on one scratch buffer"
        running.remove(id(session))

    engines = [
        engine_of(
            FakeSession(fixed(1, 3, 1, 8, 8), scratch_bytes=lambda _: 1024, on_execute=alone),
            file,
            scratch=scratch,
        )
        for _ in range(2)
    ]
    wrong: list[BaseException] = []

    def work(engine: Engine) -> None:
        try:
            for i in range(100):
                y = engine.run(torch.full((1, 3, 1, 8, 8), float(i)))
                assert float(y.mean()) == i
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert scratch.bytes == 1024


def test_close_waits_for_the_last_run_and_ends_it(file):
    session = FakeSession(fixed(1, 3, 1, 8, 8))
    scratch = Scratch(CPU)
    engine = engine_of(session, file, scratch=scratch)
    stream = FakeStream(3)
    engine.enqueue(torch.zeros(1, 3, 1, 8, 8), 0, stream)
    event = stream.log[-1][1]
    engine.close()
    engine.close()
    assert session.closed
    assert event.waits == 1
    with pytest.raises(EngineError, match="closed"):
        engine.run(torch.zeros(1, 3, 1, 8, 8))


@pytest.mark.parametrize("captured", [False, True])
def test_a_gpu_gets_input_that_is_aligned(file, captured):
    """A slice begins anywhere; TensorRT asks for 256 bytes, and PyTorch allocates by 512."""
    given: list[int] = []

    class Noted(FakeSession):
        def execute(self, *, input_ptr: int, **others: int) -> None:
            given.append(input_ptr)
            super().execute(input_ptr=input_ptr, **others)

    engine = make(file, Noted(fixed(1, 3, 1, 8, 8)))
    buffer = torch.ones(192 + 256)
    first = -(buffer.data_ptr() // 4) % 128
    fits, off = (buffer[i : i + 192].view(1, 3, 1, 8, 8) for i in (first, first + 1))
    engine.run(fits)
    run = engine.enqueue_captured if captured else engine.enqueue
    for x in (fits, off):
        assert float(run(x, 0, FakeStream(1)).mean()) == 1.0
    assert given[:2] == [fits.data_ptr()] * 2, "no copy where none is needed"
    assert given[2] not in (fits.data_ptr(), off.data_ptr())


class OnGpu(torch.Tensor):
    """What says that it is on a GPU, and notes the streams that it is kept for."""

    kept: list[object]

    @property
    def is_cuda(self) -> bool:
        return True

    def to(self, *_given, **_options) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)

    def record_stream(self, stream) -> None:
        self.kept.append(stream)


def on_gpu(x: torch.Tensor) -> OnGpu:
    y = x.as_subclass(OnGpu)
    y.kept = []
    return y


def test_input_and_scratch_are_kept_for_the_stream_that_reads_them(file, monkeypatch):
    """The caller may drop its input at once, and another engine may let the scratch grow: the
    allocator must not hand them out before this run is over.
    """
    stream = FakeStream(7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(engine_module, "on", lambda _device: nullcontext())
    buffer, empty = on_gpu(torch.zeros(4096, dtype=torch.uint8)), torch.empty

    def allocate(size, *, dtype, device):
        return buffer if dtype == torch.uint8 else empty(size, dtype=dtype)

    monkeypatch.setattr(torch, "empty", allocate)
    session = FakeSession(RANGE, scratch_bytes=lambda _: 512)
    device = torch.device("cuda", 0)
    engine = engine_of(session, file, scratch=Scratch(CPU), device=device)
    x = on_gpu(torch.ones(1, 3, 1, 8, 8))
    assert float(engine.run(x).mean()) == 1.0
    assert x.kept == [stream]
    assert buffer.kept == [stream]
    monkeypatch.undo()  # before it is closed


def test_an_engine_that_is_dropped_is_waited_for_and_closed_by_the_next_run(file):
    session, stream, scratch = FakeSession(fixed(1, 3, 1, 8, 8)), FakeStream(3), Scratch(CPU)
    dropped, kept = engine_of(session, file, scratch=scratch), make(file, FakeSession(RANGE))
    dropped.enqueue(torch.zeros(1, 3, 1, 8, 8), 0, stream)
    event = stream.log[-1][1]
    cycle = [dropped]
    cycle.append(cycle)
    del cycle, dropped
    with scratch.turn(None):  # garbage is collected anywhere, as in the turn of another engine
        gc.collect()
        assert not session.closed, "nothing is waited for inside a finalizer"
    assert event.waits == 0
    kept.run(torch.zeros(1, 3, 1, 8, 8))
    assert event.waits == 1
    assert session.closed


@pytest.mark.parametrize("by", ["open", "close", "make_room"])
def test_what_a_dropped_engine_held_goes_with_the_next_call(file, tmp_path, by):
    session, other = FakeSession(RANGE), make(file, FakeSession(RANGE))
    dropped = make(file, session)
    del dropped
    gc.collect()
    assert not session.closed
    if by == "close":
        other.close()
    elif by == "open":
        with pytest.raises(EngineError):
            Engine.open(tmp_path / "nothing.trt")
    else:
        engines = Engines({}, backend="onnxruntime", weights_sha256="")
        engines.make_room(CPU)
    assert session.closed


def test_a_closed_engine_leaves_nothing_behind(file):
    session = FakeSession(RANGE)
    engine = make(file, session)
    engine.close()
    session.closed = False
    del engine
    gc.collect()
    make(file, FakeSession(RANGE)).close()
    assert not session.closed, "closed twice"


def test_a_dropped_engine_that_does_not_close_is_not_the_next_ones_fault(file, caplog):
    class Broken(FakeSession):
        def close(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    dropped = make(file, Broken(RANGE))
    del dropped
    gc.collect()
    kept = make(file, FakeSession(RANGE))
    assert float(kept.run(torch.ones(1, 3, 1, 8, 8)).mean()) == 1.0
    assert "illegal memory access" in caplog.text


def test_a_foreign_engine_loads_only_when_asked_for_and_says_so(file):
    backend = SimpleNamespace(open=lambda _path: FakeSession(fixed(1, 3, 1, 8, 8), channels_out=6))
    with pytest.raises(ForeignEngineError, match="no sidecar"):
        Engine.open(file, wanted=Wanted(backend=backend))
    with pytest.warns(UserWarning, match=r"vae_decoder\.trt: no sidecar"):
        engine = Engine.open(file, wanted=Wanted(backend=backend, allow_foreign=True))
    assert engine.part == "encoder", "fewer channels in than out"
    assert engine.sidecar is None


@pytest.mark.filterwarnings("error:.*no sidecar")
def test_a_foreign_engine_is_warned_of_before_its_code_runs(file):
    backend = SimpleNamespace(open=lambda _path: pytest.fail("it is loaded"))
    with pytest.raises(UserWarning, match="no sidecar"):
        Engine.open(file, wanted=Wanted(backend=backend, allow_foreign=True))


def test_a_missing_engine_names_the_file(tmp_path):
    with pytest.raises(EngineError, match=r"nothing\.trt: no such file"):
        Engine.open(tmp_path / "nothing.trt")


# --- against TensorRT itself, as a fake that records every call
# -------------------------------------


@pytest.fixture(params=["8.6", "10.0", "10.16", "11.4"])
def trt(request, monkeypatch):
    """TensorRT and a GPU, which are fakes: sessions run on host memory."""
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed(request.param) as module:
        yield module


@pytest.fixture
def scratch() -> Scratch:
    return Scratch(CPU)


@pytest.fixture
def engine(trt, tmp_path, scratch):
    path = tmp_path / "vae_decoder_multi_profile.trt"
    path.write_bytes(fake_tensorrt.plan(trt.fake.variant, ranges=RANGES))
    session = TensorRT("tensorrt").open(path)
    engine = engine_of(session, path, scratch=scratch, device=CPU)
    yield engine
    engine.close()
    del session, engine
    gc.collect()
    assert trt.fake.live["IExecutionContext"] == 0


def calls(trt, *names: str) -> list[tuple]:
    return [(c.name.rpartition(".")[2], *c.args) for c in trt.fake.calls if c.name.endswith(names)]


def test_everything_goes_to_the_callers_stream(trt, engine):
    stream = FakeStream(0x77)
    engine.enqueue(torch.zeros(1, 16, 1, 12, 12, dtype=torch.float16), 1, stream)
    assert ("execute_async_v3", 0x77) in calls(trt, "execute_async_v3")
    assert ("set_optimization_profile_async", 1, 0x77) in calls(trt, "profile_async")


def test_the_profile_asked_for_is_set_and_its_bounds_hold(trt, engine):
    engine.run(torch.zeros(1, 16, 1, 12, 12), profile=1)
    engine.run(torch.zeros(1, 16, 1, 8, 8), profile=0)
    assert [c[1] for c in calls(trt, "set_optimization_profile_async")] == [1, 0]
    with pytest.raises(EngineError, match="profile 1"):
        engine.run(torch.zeros(1, 16, 1, 8, 8), profile=1)


def test_the_result_is_what_tensorrt_wrote(trt, engine):
    x = torch.randn(1, 16, 1, 8, 8)
    y = engine.run(x)
    assert y.shape == (1, 3, 1, 64, 64)
    assert y.dtype == torch.float16
    expected = (
        x.half().float().mean(1, keepdim=True).repeat_interleave(8, 3).repeat_interleave(8, 4)
    )
    torch.testing.assert_close(y.float(), expected.expand_as(y), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.execute_async_v3",
    ],
)
def test_a_false_from_tensorrt_is_an_error_and_the_next_run_works(trt, engine, name):
    trt.fake.fail[name] = 1
    trt.fake.messages[name] = "what went wrong"
    x = torch.ones(1, 16, 1, 12, 12)
    with pytest.raises(ExecutionError, match="what went wrong"):
        engine.run(x, profile=1)
    y = engine.run(x, profile=1)
    torch.testing.assert_close(y.float(), torch.ones_like(y.float()))


def test_scratch_handed_over_is_what_the_shape_needs(trt, engine, scratch):
    trt.fake.scratch_bytes = lambda shape: 1000 * shape[3]
    engine.run(torch.zeros(1, 16, 1, 8, 8))
    if trt.fake.variant == "8.6":  # knows only the engine's largest
        assert scratch.bytes == 16_000
        assert calls(trt, "device_memory")
    else:
        assert scratch.bytes == 8_000


def test_an_engine_of_another_version_is_stale(trt, tmp_path):
    path = tmp_path / "old.trt"
    path.write_bytes(fake_tensorrt.plan(trt.fake.variant, version="7.0", ranges=RANGES))
    with pytest.raises(EngineError, match=r"old\.trt"):
        TensorRT("tensorrt").open(path)


def test_capturing_wants_a_static_engine_that_has_run(trt, engine):
    with pytest.raises(ExecutionError, match="not a static engine"):
        engine.enqueue_captured(torch.zeros(1, 16, 1, 8, 8).half(), 0, FakeStream(1))


def test_a_captured_run_has_scratch_of_its_own_and_pins_the_engine(file):
    session = FakeSession(fixed(1, 3, 1, 8, 8), scratch_bytes=lambda _: 512)
    scratch = Scratch(CPU)
    engine = engine_of(session, file, scratch=scratch)
    stream = FakeStream(5)
    x = torch.ones(1, 3, 1, 8, 8)
    with pytest.raises(ExecutionError, match="not run yet"):
        engine.enqueue_captured(x, 0, stream)
    engine.run(x)
    assert not engine.captured
    y = engine.enqueue_captured(x, 0, stream)
    assert float(y.mean()) == 1.0
    assert engine.captured
    shared, private = (call[1] for call in session.calls if call[0] == "execute")
    assert shared != private
    assert stream.log == [], "a captured stream neither waits nor records"


def test_a_capture_that_fails_does_not_pin_the_engine(file):
    def refuse(_session: FakeSession) -> None:
        raise ExecutionError("the engine failed")

    session = FakeSession(RANGE)
    engine = make(file, session)
    engine.run(torch.ones(1, 3, 1, 8, 8))
    session.on_execute = refuse
    with pytest.raises(ExecutionError):
        engine.enqueue_captured(torch.ones(1, 3, 1, 8, 8), 0, FakeStream(5))
    assert not engine.captured


def test_a_backend_that_waits_for_the_stream_is_not_captured(file):
    engine = make(file, FakeSession(RANGE, capturable=False))
    engine.run(torch.ones(1, 3, 1, 8, 8))
    with pytest.raises(ExecutionError, match="waits for the stream"):
        engine.enqueue_captured(torch.ones(1, 3, 1, 8, 8), 0, FakeStream(5))
