"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int], object]
"""Called with the stage, steps done and steps in all, maybe from another thread. What it raises
ends the work and is raised from it: KeyboardInterrupt stops a build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One step of work on several items: engines to build, variants to tune, sizes to measure.

    Attributes:
        kind: `start` of an item, `progress` (text: the stage; done of total), `warning`, `end` of
            an item.
        item: its name.
        index, count: its place among all items, from 0; count is 0 for an event of no item.
        text: what to tell; empty where there is nothing to tell.
    """

    kind: Literal["start", "progress", "warning", "end"]
    item: str = ""
    index: int = 0
    count: int = 0
    text: str = ""
    done: int = 0
    total: int = 0


OnEvent = Callable[[Event], object]


def ignore(*_told: object) -> None:
    """No-op callback, for events and for stages."""


def stages(on_event: OnEvent, event: Callable[..., Event]) -> Progress:
    """What tells of the stages of one item; `event` makes an event of it."""

    def tell(stage: str, done: int, total: int) -> None:
        on_event(event(kind="progress", text=stage, done=done, total=total))

    return tell
