"""PyTorch's memory: weights for all callers, and the lack of it told in words."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import torch

from qvae_trt.errors import DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        raise DeviceMemoryError(
            f"{device}: no {what}",
            fix="free device memory, or call vae.release_memory() and torch.cuda.empty_cache()",
        ) from error


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
