"""Which engines are not worth another try, and until when."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from qvae_trt import store
from qvae_trt.errors import DeviceMemoryError, ForeignEngineError, QvaeError, StaleEngineError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

#: After so many failures in a row an engine is left alone for so long: each try costs time, and may
#: close good engines to make room.
STRIKES, PAUSE_S = 3, 60.0

Signature = tuple[object, ...]


class Failures:
    """Remembers what failed and why, for each engine and device.

    What the files themselves show, another build or no sidecar, holds until they change. Anything
    else may pass (too many open files, a CUDA call that another thread's capture forbids): it is
    tried again, after `STRIKES` in a row not before `PAUSE_S` are over. Nothing is remembered of a
    lack of memory, for which room is made.
    """

    def __init__(self) -> None:
        # The files' signature, the error, and until when it holds.
        self._failed: dict[tuple[Path, torch.device], tuple[Signature, QvaeError, float]] = {}
        self._strikes: dict[tuple[Path, torch.device], tuple[Signature, int]] = {}
        self._lock = threading.Lock()

    def check(self, path: Path, device: torch.device) -> None:
        """Raise what this engine failed with, unless its files have changed since."""
        known = self._failed.get((path, device))
        if known is not None and time.monotonic() < known[2] and known[0] == signature(path):
            raise bare(known[1])

    def note(self, path: Path, device: torch.device, error: QvaeError, files: Signature) -> None:
        """The engine could not be loaded, or a run of it failed.

        Args:
            path: the engine.
            device: where.
            error: what was raised.
            files: their `signature` before the attempt.
        """
        if isinstance(error, DeviceMemoryError):
            return
        place = path, device
        with self._lock:
            if isinstance(error, StaleEngineError | ForeignEngineError):
                self._failed[place] = files, bare(error), math.inf
                return
            known, strikes = self._strikes.get(place, (files, 0))
            strikes = strikes + 1 if known == files else 1
            self._strikes[place] = files, strikes
            if strikes >= STRIKES:
                self._failed[place] = files, bare(error), time.monotonic() + PAUSE_S

    def clear_strikes(self, path: Path, device: torch.device) -> None:
        """A run of the engine went well."""
        self._strikes.pop((path, device), None)

    def forget(self) -> None:
        """Everything may be tried again."""
        with self._lock:
            self._failed.clear()
            self._strikes.clear()


def signature(path: Path) -> Signature:
    """Changes when the engine or its sidecar does."""
    return tuple(store.stamp_of(file) for file in (path, store.sidecar_path(path)))


def bare(error: QvaeError) -> QvaeError:
    """The same error without its traceback, which would keep tensors and engines alive."""
    return type(error)(error.what, fix=error.fix)
