"""One scratch buffer a device, and the turn to use it.

TensorRT asks every execution for scratch memory, gigabytes at large sizes, and needs it only while
it runs. All engines of a device share one buffer here, so that they cost the largest need of the
sizes in use and not the sum.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from qvae_trt.backends import ALIGNMENT_BYTES
from qvae_trt.runtime.memory import memory_named

if TYPE_CHECKING:
    from collections.abc import Iterator

_BY_DEVICE: weakref.WeakValueDictionary[torch.device, Scratch] = weakref.WeakValueDictionary()
_BY_DEVICE_LOCK = threading.Lock()


def shared_scratch(device: torch.device) -> Scratch:
    """The process's one `Scratch` of a CUDA device; for the CPU a fresh one, since nothing is
    shared there.

    It lives as long as somebody holds it, so that its memory goes with the last engine.
    """
    if device.type != "cuda":
        return Scratch(device)
    with _BY_DEVICE_LOCK:
        scratch = _BY_DEVICE.get(device)
        if scratch is None:
            scratch = _BY_DEVICE[device] = Scratch(device)
        return scratch


class Scratch:
    """Scratch memory that grows to the largest need seen, from PyTorch's caching allocator.

    Attributes:
        generation: counts the buffers; an address is valid as long as this stays the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generation = 0
        self._lock = threading.RLock()  # reentrant: turns drain
        self._buffer: torch.Tensor | None = None
        self._last: torch.cuda.Event | None = None

    @property
    def bytes(self) -> int:
        """Bytes held now."""
        buffer = self._buffer  # another thread may release it meanwhile
        return 0 if buffer is None else buffer.numel() - ALIGNMENT_BYTES

    @contextmanager
    def turn(self, stream: torch.cuda.Stream | None) -> Iterator[None]:
        """Hold the buffer: other threads wait here, other streams wait for the work enqueued
        inside.

        Args:
            stream: the stream that the caller enqueues on; None on the CPU, and while it is being
                captured, when waiting for the outside is impossible and `private` must be used.
        """
        with self._lock:
            if stream is None:
                yield
                return
            if self._last is not None:  # on whichever stream: a handle is given again
                stream.wait_event(self._last)
            try:
                yield
            finally:
                # Also after a failure: part of the work may have been enqueued.
                self._last = stream.record_event(self._last)

    def reserve(self, size: int, stream: torch.cuda.Stream | None) -> int:
        """Address of at least `size` bytes, usable until the end of the turn; 0 for none.

        Raises:
            DeviceMemoryError: the allocator has not that much, even without the buffer held before.
        """
        if size <= 0:
            return 0
        if size > self.bytes or self._buffer is None:
            # The old one goes first, so that both are never held at once, and idle, so that it can
            # be part of the new.
            self.drain()
            self._buffer = None
            self.generation += 1
            self._buffer = _allocate(size, self.device)
        if stream is not None and self._buffer.is_cuda:
            self._buffer.record_stream(stream)
        return aligned(self._buffer)

    def private(self, size: int) -> torch.Tensor:
        """Memory of its own for a caller whose stream is being captured: a graph keeps the
        addresses it saw.
        """
        return _allocate(max(size, 1), self.device)

    def drain(self) -> None:
        """Return once the device has finished every turn."""
        with self._lock:
            if self._last is not None:
                self._last.synchronize()

    def release(self) -> None:
        """Give the buffer back to the allocator; the next turn takes what it needs."""
        with self._lock:
            if self._buffer is not None:
                self._buffer = None
                self.generation += 1


def aligned(buffer: torch.Tensor) -> int:
    """The first address in a buffer that TensorRT takes."""
    return -(-buffer.data_ptr() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _allocate(size: int, device: torch.device) -> torch.Tensor:
    with memory_named(device, f"{size / 2**30:.2f} GiB free for an engine's scratch memory"):
        return torch.empty(size + ALIGNMENT_BYTES, dtype=torch.uint8, device=device)
