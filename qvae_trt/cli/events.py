"""Progress as it is shown: bars where stderr is a terminal, else a line at each step."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console

from qvae_trt.cli import output
from qvae_trt.progress import Event, OnEvent


@contextlib.contextmanager
def show_progress(title: str = "") -> Iterator[OnEvent]:
    """A callback that shows events: a bar for all items and one for the stage at work.

    Args:
        title: stands before each line; without it only the item does.
    """
    if not sys.stderr.isatty() or output.settings.as_json:
        yield lambda event: _tell(event, title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    words = TextColumn("{task.description}", markup=False)
    with Progress(words, *columns, console=output.console(), transient=True) as bars:
        every, stage = bars.add_task(title or "all", total=None), bars.add_task("", total=None)

        def show(event: Event) -> None:
            if event.count:
                done = event.index + (event.kind == "end")
                bars.update(every, completed=done, total=event.count)
            if event.kind in ("start", "progress"):
                text = ": ".join(filter(None, (event.item, event.text)))
                bars.update(
                    stage, description=text, completed=event.done, total=event.total or None
                )
            else:
                _tell(event, title, bars.console)

        yield show


def _tell(event: Event, title: str, console: Console | None = None) -> None:
    text, stage = event.text, event.kind == "progress"
    if not text or (stage and not output.settings.verbose):
        return
    if event.kind == "warning":
        text = f"warning: {text}"
    if stage and event.total:
        text += f" {event.done}/{event.total}"
    place = f"{event.index + 1}/{event.count}" if event.count else ""
    head = " ".join(filter(None, (title, place, event.item)))
    output.tell(f"{head}: {text}" if head else text, on=console)
