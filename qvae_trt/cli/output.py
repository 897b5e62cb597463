"""Where output goes: results to stdout, everything else to stderr.

A command calls `emit` once with its result as plain data and a way to draw that result; `--json`
decides which of the two is printed. `tell` writes to stderr, and `show_progress` does: bars on a
terminal, else a line at each step.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from qvae_trt.errors import printable
from qvae_trt.progress import Event, OnEvent

# Rich folds tables at 80 columns where it knows no width; a pipe or a file has none.
_PIPE_WIDTH = 200


class _Settings:
    """The running command: its line, and what its `--json` and `--verbose` said."""

    as_json: bool = False
    verbose: bool = False
    results: IO[str] | None = None
    command: str = "qvae"


settings = _Settings()


def set_json(value: bool) -> bool:
    settings.as_json = settings.as_json or value
    return value


def set_verbose(value: bool) -> bool:
    settings.verbose = settings.verbose or value
    return value


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Keep stdout for results while a command runs.

    TensorRT and ONNX Runtime print to file descriptor 1 from C++, past Python: the descriptor is
    redirected to stderr, and `sys.stdout` writes to a copy of the old one. Does nothing where
    `sys.stdout` is not the process's own (tests). Streams that the caller has closed are opened on
    the null device: else the first files opened would get their descriptors, and the output.
    """
    _open_closed_streams()
    if not _is_own_stdout():
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    before = sys.stdout
    sys.stdout = _Results(
        os.fdopen(kept, "wb", closefd=False),
        encoding=before.encoding,
        errors="replace",
        line_buffering=True,
    )
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # told by the command; Python's own last flush would fail again
            mute(sys.stdout)
        os.dup2(kept, 1)
        sys.stdout = before


def _open_closed_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each takes the lowest number that is free, which is its own.
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


class _Results(io.TextIOWrapper):
    """Stdout whose reader may close it (`qvae … | head`): the command still ends with its own exit
    code.
    """

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except BrokenPipeError:
            mute(self)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            mute(self)


def _is_own_stdout() -> bool:
    try:
        os.fstat(2)
        own = sys.__stdout__
        return own is not None and sys.stdout is own and own.fileno() == 1
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return False


@contextlib.contextmanager
def results_only() -> Iterator[None]:
    """While a command runs, `print` in any library goes to stderr; `emit` still reaches stdout.

    Warnings are told as lines, without the place in the source that gave them.
    """
    outer = settings.results  # of a command with commands of its own
    settings.results = outer or sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_where, **_more: warn(str(message))
            yield
    finally:
        settings.results = outer


def warn(text: str) -> None:
    """A warning for the person, on stderr."""
    tell(f"warning: {text}", style="yellow")


def emit(data: Mapping[str, Any], draw: Callable[[Any], RenderableType]) -> None:
    """Print a result: `data` as JSON with `--json`, else what `draw` makes of it."""
    stream = settings.results or sys.stdout
    if settings.as_json:
        stream.write(to_json(data))
    else:
        console(stream).print(draw(data), crop=False)  # a command to copy stays in one line
    stream.flush()


def mute(stream: IO[str]) -> None:
    """Redirect a stream without a reader to the null device, so that the last flush succeeds."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class _Console(Console):
    """Escapes control characters, which text from files may have, instead of sending them."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(printable(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def console(stream: IO[str] | None = None) -> Console:
    """A console on `stream`; without one on stderr."""
    file = sys.stderr if stream is None else stream
    width = _width(terminal=file.isatty())
    return _Console(file=file, width=width, highlight=False, soft_wrap=False, emoji=False)


def _width(*, terminal: bool) -> int | None:
    """None lets Rich ask the terminal. A COLUMNS that is not a number above 0 counts as unset."""
    asked = os.environ.get("COLUMNS")
    if asked is not None and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if not terminal:
        return _PIPE_WIDTH
    # Rich would take a 0 at its word, and draw nothing.
    return None if asked is None else shutil.get_terminal_size().columns


def tell(text: str, *, style: str | None = None, on: Console | None = None) -> None:
    """A line for the person, on stderr. No markup: paths have brackets."""
    with contextlib.suppress(BrokenPipeError):
        (on or console()).print(text, style=style, markup=False, soft_wrap=True)


@contextlib.contextmanager
def show_progress(title: str = "") -> Iterator[OnEvent]:
    """A callback that shows events: a bar for all items and one for the stage at work.

    Args:
        title: stands before each line; without it only the item does.
    """
    if not sys.stderr.isatty() or settings.as_json:
        yield lambda event: _tell_event(event, title)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    words = TextColumn("{task.description}", markup=False)
    with Progress(words, *columns, console=console(), transient=True) as bars:
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
                _tell_event(event, title, bars.console)

        yield show


def _tell_event(event: Event, title: str, on: Console | None = None) -> None:
    text, stage = event.text, event.kind == "progress"
    if not text or (stage and not settings.verbose):
        return
    if event.kind == "warning":
        text = f"warning: {text}"
    if stage and event.total:
        text += f" {event.done}/{event.total}"
    place = f"{event.index + 1}/{event.count}" if event.count else ""
    head = " ".join(filter(None, (title, place, event.item)))
    tell(f"{head}: {text}" if head else text, on=on)


def to_json(data: Mapping[str, object]) -> str:
    """A result as it is printed, and written to files."""
    text = json.dumps(_finite(data), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    # Beside the line breaks between values, all that cannot be printed is in texts.
    shown = (
        letter if letter == "\n" or printable(letter) == letter else json.dumps(letter)[1:-1]
        for letter in text
    )
    return f"{''.join(shown)}\n"


def _finite(value: object) -> object:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
