"""A dictionary that forgets: what is kept for each size must not grow with every new size."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

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
