"""Stand-ins for the parts of the run-time that need a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qvae_trt import backends, store
from qvae_trt.backends import Device, Session, Verdict
from qvae_trt.errors import EngineError
from qvae_trt.opening import Opened
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.memory import Scratch
from qvae_trt.tensors import ShapeRange, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fake_cuda import FakeCuda


class FakeEvent:
    """A point in a fake stream's work."""

    def __init__(self) -> None:
        self.waits = 0
        self.recorded_on: list[int] = []

    def synchronize(self) -> None:
        self.waits += 1


class FakeStream:
    """What `Scratch` asks of a CUDA stream, written down."""

    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle
        self.log: list[tuple[str, FakeEvent]] = []

    def wait_event(self, event: FakeEvent) -> None:
        self.log.append(("wait", event))

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = event or FakeEvent()
        event.recorded_on.append(self.cuda_stream)
        self.log.append(("record", event))
        return event


@dataclass
class FakeSession:
    """An engine whose output is the mean over channels of its input, times `factor`.

    It fails the test when two threads are in it at once. On a stream that `cuda` captures, the run
    is recorded.
    """

    ranges: tuple[ShapeRange, ...]
    scratch_bytes: Callable[[tuple[int, ...]], int] = lambda _: 0
    factor: float = 1.0
    device_type: Literal["cuda", "cpu"] = "cpu"
    channels_out: int = 2
    capturable: bool = True
    on_execute: Callable[[FakeSession], None] | None = None
    cuda: FakeCuda | None = None
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    closed: bool = False

    def __post_init__(self) -> None:
        channels = self.ranges[0].min[1]
        self.input = TensorSpec("in", "float32", (1, channels, 1, -1, -1))
        self.output = TensorSpec("out", "float32", (1, self.channels_out, 1, -1, -1))
        self._shape: tuple[int, ...] = ()
        self._busy = threading.Lock()

    def select(self, shape: tuple[int, ...], profile: int, stream: int = 0) -> int:
        refusal = self.ranges[profile].refusal(shape)
        if refusal is not None:
            raise EngineError(refusal)
        self._shape = shape
        self.calls.append(("select", shape, profile, stream))
        return self.scratch_bytes(shape)

    def output_shape(self) -> tuple[int, ...]:
        return (1, self.channels_out, 1, *self._shape[3:])

    def execute(
        self, *, input_ptr: int, output_ptr: int, scratch_ptr: int, scratch_bytes: int, stream: int
    ) -> None:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads in one session")
        try:
            self.calls.append(("execute", scratch_ptr, scratch_bytes, stream))
            if self.on_execute is not None:
                self.on_execute(self)
            x = _view(input_ptr, self._shape)
            y = _view(output_ptr, self.output_shape())

            def work() -> None:
                y[:] = x.mean(axis=1, keepdims=True) * self.factor

            captured = None if self.cuda is None else self.cuda.capturing.get(stream)
            if captured is None:
                work()
            else:
                captured.append(work)
        finally:
            self._busy.release()

    def close(self) -> None:
        self.closed = True


def _view(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer)).reshape(shape)


def engine_of(
    session: Session, path: Path, *, scratch: Scratch | None = None, **options: Any
) -> Engine:
    """An engine of unknown origin in a file, as it is after loading; `scratch`: its device's."""
    backend = backends.get("onnxruntime")
    engine = Engine(Opened(path, store.signature(path), None, backend, session), **options)
    if scratch is not None:
        engine._scratch = engine.held.scratch = scratch
    return engine


def fixed(*shape: int) -> tuple[ShapeRange, ...]:
    return (ShapeRange.fixed(shape),)


class Faulty:
    """A backend that does what another does, until `fault` interferes.

    Attributes:
        fault: called with `open` or `execute` and the engine's path, before it happens; what it
            raises is raised. A float that it returns for `execute` fills the output.
        opened: every engine opened, in order.
        live: how many are not closed.
        scratch_bytes: what every run asks for at least.
    """

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.name, self.suffix = backend.name, backend.suffix
        self.fault: Callable[[str, Path], float | None] = lambda _what, _path: None
        self.opened: list[Path] = []
        self.live = 0
        self.scratch_bytes = 0

    def version(self) -> str:
        return str(self._backend.version())

    def device(self) -> Device | None:
        return self._backend.device()

    def identity(self) -> dict[str, str | None]:
        return dict(self._backend.identity())

    def can_run(self) -> Verdict:
        return self._backend.can_run()

    def open(self, engine: Path) -> Session:
        self.fault("open", engine)
        self.opened.append(engine)
        return _FaultySession(self, self._backend.open(engine), engine)


class _FaultySession:
    def __init__(self, backend: Faulty, session: Any, path: Path) -> None:
        self._backend, self._session, self._path = backend, session, path
        self.input, self.output = session.input, session.output
        self.ranges, self.device_type = session.ranges, session.device_type
        self.capturable = session.capturable
        backend.live += 1

    def select(self, shape: tuple[int, ...], profile: int, stream: int = 0) -> int:
        size = int(self._session.select(shape, profile, stream))
        return max(size, self._backend.scratch_bytes)

    def output_shape(self) -> tuple[int, ...]:
        return tuple(self._session.output_shape())

    def execute(self, **pointers: int) -> None:
        fill = self._backend.fault("execute", self._path)
        self._session.execute(**pointers)
        if fill is not None:
            _view(pointers["output_ptr"], self.output_shape())[:] = fill

    def close(self) -> None:
        self._backend.live -= 1
        self._session.close()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
