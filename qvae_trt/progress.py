"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], bool]
"""`(stage, done, total) -> go on?`. May be called from another thread; on False the
build stops and raises KeyboardInterrupt."""


def silent(_stage: str, _done: int, _total: int) -> bool:
    """No-op callback."""
    return True
