"""Progress as it is shown: bars where stderr is a terminal, else a line at each step."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from qvae_trt.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qvae_trt.build import Event
    from qvae_trt.progress import Progress


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
def builds() -> Iterator[Callable[[Event], None]]:
    """A callback for what `build` tells: a bar for all engines and one for the stage at work."""
    with output.progress() as bars:
        every = None if bars is None else bars.add_task("engines", total=None)
        stage = None if bars is None else bars.add_task("", total=None)

        def show(event: Event) -> None:
            if bars is not None and every is not None and stage is not None:
                done = event.index + (event.kind == "end")
                bars.update(every, completed=done, total=event.count)
                if event.kind in ("start", "progress"):
                    words = f"{event.job.title}: {event.text}"
                    bars.update(
                        stage, description=words, completed=event.done, total=event.total or None
                    )
            line = _line(event, verbose=output.settings.verbose)
            if line is not None and (bars is None or event.kind in ("end", "warning")):
                output.tell(line, on=None if bars is None else bars.console)

        yield show


def _line(event: Event, *, verbose: bool) -> str | None:
    head = f"{event.index + 1}/{event.count} {event.job.title}"
    match event.kind:
        case "start":
            return f"{head}: building, {event.text}"
        case "warning":
            return f"{head}: warning: {event.text}"
        case "end" if event.result is not None and event.result.status == "planned":
            return None  # the table says it all
        case "end" if event.result is not None:
            if event.result.status == "failed":
                return f"{head}: failed: {event.result.reason}"
            took = f" in {event.result.seconds:.1f} s" if event.result.status == "built" else ""
            return f"{head}: {event.result.status}{took}"
        case _:
            return f"{head}: {event.text} {event.done}/{event.total}" if verbose else None


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
