"""Progress as it is shown: bars where stderr is a terminal, else a line at each step."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qvae_trt.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qvae_trt.backends import Progress


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback `(words, done, total)` for steps of known number, told before each step."""
    with output.progress() as bars:
        task = None if bars is None else bars.add_task(title, total=None)

        def show(text: str, done: int, total: int) -> None:
            if bars is not None and task is not None:
                bars.update(task, description=f"{title}: {text}", completed=done, total=total)
            elif done < total:
                output.tell(f"{title} {done + 1}/{total}: {text}")

        yield show


@contextlib.contextmanager
def step_bar(title: str) -> Iterator[Progress]:
    """A callback `(stage, done, total) -> go on` for one export or build."""
    with output.progress() as bars:
        task = None if bars is None else bars.add_task(title, total=None)
        last: list[str] = []

        def show(stage: str, done: int, total: int) -> bool:
            if bars is not None and task is not None:
                bars.update(task, description=f"{title}: {stage}", completed=done, total=total)
            elif last != [stage]:
                last[:] = [stage]
                output.tell(f"{title}: {stage}")
            return True

        yield show
