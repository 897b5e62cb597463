"""PyTorch's lack of memory: told from other errors, and said in words."""

from __future__ import annotations

from contextlib import contextmanager
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
