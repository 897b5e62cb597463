"""Loaded engines: opened at first use, kept while they fit, never closed while in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvae_trt.runtime.failures import signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qvae_trt.runtime.engine import Engine


@dataclass(slots=True)
class _Entry:
    engine: Engine
    pins: int

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
        self._entries: OrderedDict[Path, _Entry] = OrderedDict()
        self._replaced: list[_Entry] = []  # in use, with another file in their place
        self._loading: dict[Path, threading.Lock] = {}
        self._lock = threading.Lock()

    @property
    def loaded(self) -> list[tuple[Path, int]]:
        """What is loaded, with the bytes of each file: what was replaced and is in use, then least
        recently used first.
        """
        with self._lock:
            return self._loaded()

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

    def release_idle(self) -> int:
        """Close every engine that nobody uses; how many bytes that was."""
        return self._close(lambda _: True)

    def discard(self, path: Path) -> None:
        """Close the engine of a file, unless somebody else is using it, so that the next lease
        loads it anew.
        """
        self._close(lambda other: other == path)

    def _pin(self, path: Path) -> _Entry | None:
        files = signature(path)
        with self._lock:
            entry = self._entries.get(path)
            if entry is None or entry.engine.files != files:
                return None
            entry.pins += 1
            self._entries.move_to_end(path)
            return entry

    def _load(self, path: Path, load: Callable[[], Engine]) -> _Entry:
        with self._lock:
            loading = self._loading.setdefault(path, threading.Lock())
        with loading:
            entry = self._pin(path)
            if entry is None:
                with self._lock:
                    old = self._entries.pop(path, None)
                    if old is not None:
                        self._replaced.append(old)
                # Room first, so that the peak stays inside the budget; a missing file is load's to
                # report.
                self._make_room(path.stat().st_size if path.is_file() else 0)
                entry = _Entry(load(), pins=1)
                with self._lock:
                    self._entries[path] = entry
        return entry

    def _make_room(self, size: int) -> None:
        budget = self.budget_bytes
        self._close(
            lambda _: budget is not None and size + sum(b for _, b in self._loaded()) > budget
        )

    def _close(self, wanted: Callable[[Path], bool]) -> int:
        """Close the idle engines that were replaced or are wanted, oldest first, asking under the
        lock.
        """
        freed: list[Engine] = []
        with self._lock:
            freed += [entry.engine for entry in self._replaced if entry.idle]
            self._replaced = [entry for entry in self._replaced if not entry.idle]
            for path, entry in list(self._entries.items()):
                if entry.idle and wanted(path):
                    del self._entries[path]
                    freed.append(entry.engine)
        for engine in freed:  # outside the lock: closing waits for the device
            engine.close()
        return sum(engine.bytes for engine in freed)

    def _loaded(self) -> list[tuple[Path, int]]:
        entries = (*self._replaced, *self._entries.values())
        return [(entry.engine.path, entry.engine.bytes) for entry in entries]
