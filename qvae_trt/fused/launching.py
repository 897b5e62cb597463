"""Triton kernels are launched, or only compiled."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_THIS_THREAD = threading.local()
_MOST_THREADS = 16


def launch(kernel: Any, grid: tuple[int, ...]) -> Callable[..., object]:
    """What runs a kernel on the current stream; inside `compiling`, what compiles it instead."""
    request = getattr(_THIS_THREAD, "request", None)
    return kernel[grid] if request is None else partial(request, kernel, grid)


@contextmanager
def compiling(device: torch.device) -> Iterator[None]:
    """What this thread launches inside is compiled for a device, all kernels side by side, and not
    run. Its end waits for all of them.

    Raises: what Triton raises for the first that cannot be compiled.
    """
    compiled: dict[tuple[object, ...], Future[None]] = {}
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:

        def request(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
            types = tuple(getattr(x, "dtype", type(x)) for x in args)
            key = (id(kernel), *types, *sorted(constants.items()))
            if key not in compiled:
                warm_up = partial(kernel.warmup, *args, grid=grid, **constants)
                compiled[key] = pool.submit(_on, device, warm_up)

        _THIS_THREAD.request = request
        try:
            yield
        finally:
            _THIS_THREAD.request = None
    for future in compiled.values():
        future.result()


def _on(device: torch.device, warm_up: Callable[[], Any]) -> None:
    """Compile a kernel, and load it with its launcher, which a C compiler makes."""
    with torch.cuda.device(device):  # a new thread has the first GPU
        _ = warm_up().run
