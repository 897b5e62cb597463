"""Which engines, and which sizes on them, are not worth another try, and until when."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

from qvae_trt import store
from qvae_trt.errors import DeviceMemoryError, ForeignEngineError, QvaeError, StaleEngineError
from qvae_trt.runtime.cache import Recent

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qvae_trt.profiles import Resolution

    # None: loading the engine failed, and not the run of a size.
    _Place = tuple[Path, torch.device, Resolution | None]

#: After so many failures in a row it is left alone for so long: each try costs time, and may
#: close good engines to make room.
STRIKES, PAUSE_S = 3, 60.0

Signature = tuple[object, ...]
signature = store.signature


class Failures:
    """Remembers what failed and why: loading an engine on a device, or running one size on it.

    What the files themselves show, another build or no sidecar, holds until they change. Anything
    else may pass (too many open files, a CUDA call that another thread's capture forbids): it is
    tried again, after `STRIKES` in a row not before `PAUSE_S` are over. Nothing is remembered of a
    lack of memory, for which room is made.
    """

    def __init__(self) -> None:
        # The files' signature, the error, and until when it holds.
        self._failed: Recent[_Place, tuple[Signature, QvaeError, float]] = Recent()
        self._strikes: Recent[_Place, tuple[Signature, int]] = Recent()
        self._lock = threading.Lock()

    def check(self, path: Path, device: torch.device, size: Resolution | None = None) -> None:
        """Raise what loading this engine failed with, or running this size, unless its files have
        changed since.
        """
        for failing in dict.fromkeys((None, size)):
            known = self._failed.get((path, device, failing))
            if known is not None and time.monotonic() < known[2] and known[0] == signature(path):
                raise bare(known[1])

    def note(
        self,
        path: Path,
        device: torch.device,
        error: QvaeError,
        files: Signature,
        size: Resolution | None = None,
    ) -> None:
        """The engine could not be loaded, or a run of it failed.

        Args:
            path: the engine.
            device: where.
            error: what was raised.
            files: their `signature` before the attempt.
            size: of the picture, where a run failed: another size may run.
        """
        if isinstance(error, DeviceMemoryError):
            return
        place = path, device, size
        with self._lock:
            if isinstance(error, StaleEngineError | ForeignEngineError):
                self._failed[place] = files, bare(error), math.inf
                return
            known, strikes = self._strikes.get(place, (files, 0))
            strikes = strikes + 1 if known == files else 1
            self._strikes[place] = files, strikes
            if strikes >= STRIKES:
                self._failed[place] = files, bare(error), time.monotonic() + PAUSE_S

    def clear_strikes(self, path: Path, device: torch.device, size: Resolution) -> None:
        """A run of this size went well, and so did loading the engine."""
        self._strikes.pop((path, device, None), None)
        self._strikes.pop((path, device, size), None)

    def forget(self) -> None:
        """Everything may be tried again."""
        with self._lock:
            self._failed.clear()
            self._strikes.clear()


def bare(error: QvaeError) -> QvaeError:
    """The same error without its traceback, which would keep tensors and engines alive."""
    return type(error)(error.what, fix=error.fix)
