"""Memory of devices: weights for all callers, one scratch buffer a device, and errors that name
what did not fit.

TensorRT asks every execution for scratch memory, gigabytes at large sizes, and needs it only while
it runs. All engines of a device share one buffer here, which grows to fit the most demanding size
in use.

What happens when memory runs out: `runtime.ladder` makes room (`Engines.make_room`), tries once
more, and then takes smaller tiles.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain

import torch

from qvae_trt.backends import ALIGNMENT_BYTES
from qvae_trt.errors import DeviceMemoryError, out_of_memory


@contextmanager
def memory_named(device: torch.device, what: str) -> Iterator[None]:
    """Turns PyTorch's out-of-memory errors into a DeviceMemoryError that names what did not fit."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_memory(device, what) from error


def no_memory(device: torch.device, what: str) -> DeviceMemoryError:
    """The error for what could not be allocated."""
    return DeviceMemoryError(
        f"{device}: cannot allocate {what}",
        fix="free device memory, or call vae.release_memory() and torch.cuda.empty_cache()",
    )


def free_bytes(device: torch.device) -> int:
    """What an allocation could get: free on the device, and held by PyTorch but unused. 0 on the
    CPU.
    """
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def allocated_bytes(device: torch.device) -> int:
    """What PyTorch's tensors hold on a device. 0 on the CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@contextmanager
def made_for_all(device: torch.device) -> Iterator[None]:
    """For making weights that later calls use: also those outside of inference mode, and on other
    streams.
    """
    with torch.inference_mode(False):
        yield
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def keep_while_read(module: torch.nn.Module, device: torch.device) -> None:
    """Weights that are dropped go back to PyTorch's allocator once the current stream has passed
    what it was given until then: they may have been made on another stream.
    """
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        for tensor in chain(module.parameters(), module.buffers()):
            tensor.record_stream(stream)


def on(device: torch.device | None) -> AbstractContextManager[object]:
    """A device as the thread's current one, where it is a GPU."""
    if device is None or device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)


_BY_DEVICE: weakref.WeakValueDictionary[torch.device, Scratch] = weakref.WeakValueDictionary()
_BY_DEVICE_LOCK = threading.Lock()


def shared_scratch(device: torch.device) -> Scratch:
    """The process's one `Scratch` of a CUDA device; for the CPU a fresh one, since nothing is
    shared there.

    It lives as long as something refers to it, so that its memory is freed with the last engine.
    """
    if device.type != "cuda":
        return Scratch(device)
    with _BY_DEVICE_LOCK:
        scratch = _BY_DEVICE.get(device)
        if scratch is None:
            scratch = _BY_DEVICE[device] = Scratch(device)
        return scratch


class Scratch:
    """Scratch memory from PyTorch's caching allocator. It grows to fit the most demanding engine.

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
    with memory_named(device, f"{size / 2**30:.2f} GiB of engine scratch memory"):
        return torch.empty(size + ALIGNMENT_BYTES, dtype=torch.uint8, device=device)
