"""Which engines are not worth another try, until their files change."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from qvae_trt import store

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qvae_trt.errors import ExecutionError, QvaeError

#: After so many failed runs in a row an engine is left alone.
STRIKES = 3

Signature = tuple[object, ...]


class Failures:
    """Remembers what failed and why: a damaged engine is read once, not at every call.

    Nothing is remembered of a lack of memory, which passes.
    """

    def __init__(self) -> None:
        self._failed: dict[tuple[Path, torch.device], tuple[Signature, QvaeError]] = {}
        self._strikes: dict[Path, int] = {}
        self._lock = threading.Lock()

    def check(self, path: Path, device: torch.device) -> None:
        """Raise what this engine failed with, unless its files have changed since."""
        known = self._failed.get((path, device))
        if known is not None and known[0] == signature(path):
            raise bare(known[1])

    def add(self, path: Path, device: torch.device, error: QvaeError) -> None:
        """The engine cannot be loaded."""
        with self._lock:
            self._failed[path, device] = (signature(path), bare(error))

    def strike(self, path: Path, device: torch.device, error: ExecutionError) -> None:
        """A run of the engine failed."""
        with self._lock:
            self._strikes[path] = strikes = self._strikes.get(path, 0) + 1
        if strikes >= STRIKES:
            self.add(path, device, error)

    def clear_strikes(self, path: Path) -> None:
        """A run of the engine went well."""
        self._strikes.pop(path, None)

    def forget(self) -> None:
        """Everything may be tried again."""
        with self._lock:
            self._failed.clear()
            self._strikes.clear()


def signature(path: Path) -> Signature:
    """Changes when the engine or its sidecar does."""
    return tuple(store.stamp_of(file) for file in (path, store.sidecar_path(path)))


def bare(error: QvaeError) -> QvaeError:
    """The same error without its traceback, which would keep tensors alive."""
    return type(error)(error.what, fix=error.fix)
