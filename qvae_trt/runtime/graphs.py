"""A run of a static engine as a CUDA graph: one launch in place of a hundred."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from qvae_trt.backends import devices

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Captures:
    """Keeps captures and what waits for the device apart, between threads.

    While any stream is captured the driver refuses to wait for the device, in every thread, and
    TensorRT does so when it loads or frees an engine.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._capturing: int | None = None

    @contextmanager
    def none(self) -> Iterator[None]:
        """For what waits for the device: no engine is captured meanwhile. Many at a time."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._capturing in (None, me))
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()

    @contextmanager
    def one(self) -> Iterator[None]:
        """For a capture: nothing waits for the device meanwhile. One at a time."""
        with self._changed:
            self._changed.wait_for(lambda: self._capturing is None and self._waiting == 0)
            self._capturing = threading.get_ident()
        try:
            yield
        finally:
            with self._changed:
                self._capturing = None
                self._changed.notify_all()


captures = Captures()


@dataclass(frozen=True, slots=True)
class CapturedRun:
    """A captured run, with an input and an output of its own.

    Attributes:
        generation: of the scratch buffer whose address it holds; it is dead once that changes.
    """

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    y: torch.Tensor
    generation: int

    @classmethod
    def capture(
        cls,
        execute: Callable[[torch.Tensor, torch.Tensor, int], None],
        *,
        x: torch.Tensor,
        y: torch.Tensor,
        generation: int,
    ) -> CapturedRun:
        """Capture `execute(x, y, stream)` on tensors like these. Waits for the device.

        Raises:
            RuntimeError: CUDA refuses; also what `execute` raises.
        """
        source, result = torch.empty_like(x), torch.empty_like(y)
        graph = torch.cuda.CUDAGraph()
        with captures.one(), _back_on(torch.cuda.current_stream(x.device)):
            stream = _capture_stream(x.device)
            # thread_local: other threads may allocate meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                execute(source, result, stream.cuda_stream)
        return cls(graph, source, result, generation)

    def replay(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The run of `x`, into `y`, on the current stream."""
        self.x.copy_(x)
        self.graph.replay()
        return y.copy_(self.y)


@contextmanager
def _back_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """This is the thread's stream again afterwards: a capture that fails leaves its own behind."""
    try:
        yield
    finally:
        torch.cuda.set_stream(stream)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that nothing else runs on. Those that PyTorch hands out are 32 a GPU: the 33rd is
    the first again, and its owner's work would be captured.
    """
    handle = devices.create_stream()
    return torch.cuda.ExternalStream(handle, device=device)  # type: ignore[no-untyped-call]


def capturing(x: torch.Tensor) -> bool:
    """Whether the current stream of x's device is being captured into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
