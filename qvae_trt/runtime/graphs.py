"""A run of an engine as a CUDA graph: one launch in place of hundreds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qvae_trt.backends import devices


class Captures:
    """Keeps captures and what waits for the device apart, between threads.

    While any stream is captured the driver refuses to wait for the device, in every thread, and
    TensorRT does so when it loads or frees an engine.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting = 0
        self._capturing = False

    @contextmanager
    def none(self) -> Iterator[None]:
        """For what waits for the device: no engine is captured meanwhile. Many at a time."""
        with self._changed:
            self._changed.wait_for(lambda: not self._capturing)
            self._waiting += 1
        try:
            yield
        finally:
            with self._changed:
                self._waiting -= 1

    @contextmanager
    def one(self) -> Iterator[bool]:
        """For a capture: nothing waits for the device meanwhile. One at a time.

        Yields whether that is so. It is not waited for: loading an engine takes seconds, and the
        other engines serve meanwhile.
        """
        with self._changed:
            alone = not self._capturing and self._waiting == 0
            self._capturing = self._capturing or alone
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._capturing = False
                    self._changed.notify_all()


captures = Captures()


@dataclass(frozen=True, slots=True, eq=False)
class CapturedRun:
    """A captured run, with an input and an output of its own.

    Attributes:
        graph: the driver's handle.
        x: the input that it reads.
        y: the output that it writes.
    """

    graph: int
    x: Tensor
    y: Tensor

    @classmethod
    def capture(
        cls, execute: Callable[[Tensor, Tensor, int], None], *, x: Tensor, y: Tensor
    ) -> CapturedRun | None:
        """Capture `execute(x, y, stream)` on tensors like these; None while something else waits
        for the device, or is captured.

        Raises:
            RuntimeError: CUDA refuses; also what `execute` raises.
        """
        with captures.one() as alone:
            if not alone:
                return None
            # Tensors made in inference mode can only be written in it.
            with torch.inference_mode(False):
                source, result = torch.empty_like(x), torch.empty_like(y)
            devices.ensure_context(x.device.index or 0)
            stream = _capture_stream(x.device)
            graph = devices.capture(stream, lambda: execute(source, result, stream))
        return cls(graph, source, result)

    def replay(self, x: Tensor, y: Tensor, stream: int) -> None:
        """The run of `x`, into `y`, on `stream`, which is the current one.

        Raises:
            RuntimeError: CUDA refuses.
        """
        with torch.no_grad():
            self.x.copy_(x)
            devices.launch(self.graph, stream)
            y.copy_(self.y)

    def close(self) -> None:
        """Free the graph. Its last replay is over.

        Raises:
            RuntimeError: CUDA refuses.
        """
        devices.ensure_context(self.x.device.index or 0)
        devices.destroy(self.graph)


@cache
def _capture_stream(device: torch.device) -> int:  # noqa: ARG001  one for each
    """A stream that nothing else runs on. Those that PyTorch hands out are 32 a GPU: the 33rd is
    the first again, and its owner's work would be captured.
    """
    return devices.create_stream()


def capturing(x: Tensor) -> bool:
    """Whether the current stream of x's device is being captured into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
