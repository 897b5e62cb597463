"""Loaded engines that are kept, and those that are left alone after failures."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

from qvae_trt.errors import DeviceMemoryError, ForeignEngineError, QvaeError, StaleEngineError
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import signature

Signature = tuple[object, ...]
#: An engine, where, and which size; None: its loading, and not a run.
Place = tuple[Path, torch.device, Resolution | None]

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_MOST = 256


class Recent(OrderedDict[_Key, _Value]):
    """The 256 entries that were set last."""

    def __setitem__(self, key: _Key, value: _Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > _MOST:
            self.popitem(last=False)


class Counts(Generic[_Key]):
    """Counts of the 256 keys that were seen last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._counts: Recent[_Key, int] = Recent()
        self._lock = threading.Lock()

    def add(self, key: _Key) -> None:
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def all(self) -> dict[_Key, int]:
        with self._lock:
            return dict(self._counts)


@dataclass(slots=True)
class _Entry:
    engine: Engine
    pins: int
    replaced: bool = False  # in use, with another file in its place

    @property
    def idle(self) -> bool:
        return self.pins == 0 and not self.engine.captured


class EngineCache:
    """Engines by file. Past `budget_bytes` the least recently used idle ones are closed.

    An engine whose file was replaced is not used again: it is closed once nobody uses it. Engines
    in use are never closed: while they alone exceed the budget, it is exceeded.

    Args:
        budget_bytes: for all engines together, as the size of their files; None keeps everything.
    """

    def __init__(self, *, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._entries: OrderedDict[tuple[Path, Signature], _Entry] = OrderedDict()
        self._loading: dict[Path, threading.Lock] = {}
        self._lock = threading.RLock()  # reentrant: closing asks what is loaded

    @property
    def loaded(self) -> list[tuple[Path, int]]:
        """What is loaded, with the bytes of each file, the least recently used first."""
        with self._lock:
            return [(path, entry.engine.bytes) for (path, _), entry in self._entries.items()]

    @contextmanager
    def lease(self, path: Path, load: Callable[[], Engine] | None) -> Iterator[Engine | None]:
        """The engine of a file, as the file is now, pinned until the end of the block.

        Args:
            path: the engine's file.
            load: opens it if it is not loaded; one call at a time for each file. What it raises
                goes through. None: nothing is loaded or closed, and there may be no engine.
        """
        entry = self._pin(path)
        if entry is None and load is not None:
            entry = self._load(path, load)
        try:
            yield None if entry is None else entry.engine
        finally:
            if entry is not None:
                with self._lock:
                    entry.pins -= 1
            if load is not None:
                self._make_room(0)

    def release_idle(self, path: Path | None = None) -> int:
        """Close every engine that nobody uses, or only that of a file, which the next lease then
        loads anew; how many bytes that was.
        """
        return self._close(lambda other: path in (None, other))

    def _pin(self, path: Path) -> _Entry | None:
        key = path, signature(path)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.pins += 1
                self._entries.move_to_end(key)
                for (other, files), loaded in self._entries.items():
                    if other == path:  # a file may come back
                        loaded.replaced = files != key[1]
            return entry

    def _load(self, path: Path, load: Callable[[], Engine]) -> _Entry:
        with self._lock:
            loading = self._loading.setdefault(path, threading.Lock())
        with loading:
            entry = self._pin(path)
            if entry is None:
                with self._lock:
                    for (other, _), old in self._entries.items():
                        old.replaced = old.replaced or other == path
                # Room first, so that the peak stays inside the budget; load() reports a
                # missing file.
                self._make_room(path.stat().st_size if path.is_file() else 0)
                entry = _Entry(load(), pins=1)
                with self._lock:
                    self._entries[path, entry.engine.files] = entry
        return entry

    def _make_room(self, size: int) -> None:
        budget = self.budget_bytes
        self._close(lambda _: budget is not None and size + sum(b for _, b in self.loaded) > budget)

    def _close(self, wanted: Callable[[Path], bool]) -> int:
        """Close the idle engines that were replaced or are wanted, oldest first, asking under the
        lock.
        """
        freed: list[Engine] = []
        with self._lock:
            for (path, files), entry in list(self._entries.items()):
                if entry.idle and (entry.replaced or wanted(path)):
                    del self._entries[path, files]
                    freed.append(entry.engine)
        for engine in freed:  # outside the lock: closing waits for the device
            engine.close()
        return sum(engine.bytes for engine in freed)


#: After so many failures in a row it is left alone for so long: each try costs time, and may
#: close good engines to make room.
STRIKES, PAUSE_S = 3, 60.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failure at one place: the `signature` of the files, how many in a row, and until
    when it is not tried again.
    """

    files: Signature
    error: QvaeError
    in_a_row: int
    until: float


class Failures:
    """Remembers what failed and why: loading an engine on a device, or running one size on it.

    A stale engine, or one without a sidecar, is left alone until its files change. Any other
    failure may be temporary (too many open files, a CUDA call that another thread's capture
    forbids): it is tried again, but after `STRIKES` failures in a row only once `PAUSE_S` seconds
    have passed. A lack of memory is not remembered: the caller makes room.
    """

    def __init__(self) -> None:
        self._failed: Recent[Place, _Failure] = Recent()
        self._lock = threading.Lock()

    def check(self, place: Place) -> None:
        """Raise what loading this engine failed with, or running this size, unless its files have
        changed since.
        """
        path, device, size = place
        for failing in dict.fromkeys((None, size)):
            known = self._failed.get((path, device, failing))
            if known is None or time.monotonic() >= known.until:
                continue
            if known.files == signature(path):
                raise bare(known.error)

    def note(self, place: Place, error: QvaeError, files: Signature) -> None:
        """The engine could not be loaded, or a run of this size failed: another may run. `files`:
        its `signature` before the attempt.
        """
        if isinstance(error, DeviceMemoryError):
            return
        with self._lock:
            before = self._failed.get(place)
            in_a_row = 1 if before is None or before.files != files else before.in_a_row + 1
            until = time.monotonic() + PAUSE_S if in_a_row >= STRIKES else -math.inf
            if isinstance(error, StaleEngineError | ForeignEngineError):
                until = math.inf
            self._failed[place] = _Failure(files, bare(error), in_a_row, until)

    def clear(self, place: Place) -> None:
        """A run of this size went well, and so did loading the engine."""
        path, device, _ = place
        self._failed.pop((path, device, None), None)
        self._failed.pop(place, None)

    def forget(self) -> None:
        """Everything may be tried again."""
        with self._lock:
            self._failed.clear()


def bare(error: QvaeError) -> QvaeError:
    """A copy of the error without its traceback, which would keep tensors and engines alive."""
    return type(error)(error.what, fix=error.fix)
