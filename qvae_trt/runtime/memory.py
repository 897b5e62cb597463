"""PyTorch's memory: weights for all callers, and the lack of it told in words."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import TYPE_CHECKING

import torch

from qvae_trt.errors import DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager


def out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch ran out of memory: its own error on a device, a plain RuntimeError on the
    CPU.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text
        or "_STATUS_ALLOC_FAILED" in text
        or "_STATUS_NOT_ENOUGH" in text
    )


@contextmanager
def memory_named(device: torch.device, what: str) -> Iterator[None]:
    """Turns PyTorch's lack of memory inside into a DeviceMemoryError: for what there was none."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise no_memory(device, what) from error


def no_memory(device: torch.device, what: str) -> DeviceMemoryError:
    """For what there is none."""
    return DeviceMemoryError(
        f"{device}: no {what}",
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
