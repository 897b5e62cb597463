"""Dictionaries that forget: what is kept for each size must not grow with every new size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

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
    """How often each of the 256 keys came that came last. Several threads may count."""

    def __init__(self) -> None:
        self._counts: Recent[_Key, int] = Recent()
        self._lock = threading.Lock()

    def add(self, key: _Key) -> None:
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def all(self) -> dict[_Key, int]:
        with self._lock:
            return dict(self._counts)
