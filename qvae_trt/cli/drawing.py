"""Tables on the screen, all in one style."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from qvae_trt.errors import printable

MIB = 2**20
_ENDLESS = 2**31  # nothing is folded
# Between two columns; and what a column that wraps asks for at most.
_GAP, _WRAPPED = 3, 30

# The colour that a cell gets, and the words that it starts with.
_COLOURS = {
    "green": ("ok", "passed", "built"),
    "bold green": ("chosen",),
    "cyan": ("kept", "planned"),
    "yellow": ("warn",),
    "bold red": ("error", "fail", "failed", "broken"),
}
_STYLES = {word: colour for colour, words in _COLOURS.items() for word in words}


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    title: str | None = None,
    spare: Sequence[str] = (),
    wraps: Sequence[str] = (),
) -> RenderableType:
    """A table; columns of numbers are set to the right, and words of state are coloured.

    Args:
        headers, rows: as text, which may come from a file.
        title: a line above it.
        spare: columns to leave out, the first one first, where a terminal is too narrow for all;
            a line below says so.
        wraps: columns of words that may take several lines; without it the last.
    """
    shown = [[_styled(cell) for cell in row] for row in rows]
    heads = tuple(printable(header, lines=False) for header in headers)
    return _Table(heads, shown, title, tuple(spare), tuple(wraps) or (heads[-1],))


def records(rows: Sequence[Any], columns: Mapping[str, Any], **more: Any) -> RenderableType:
    """A table of plain data. Each column is named by its header, and is the name of a value or a
    function of the row; None is shown as a dash. `more` goes to `table`.
    """

    def cell(row: Any, column: Any) -> str:
        value = row[column] if isinstance(column, str) else column(row)
        return "–" if value is None else str(value)

    shown = [[cell(row, column) for column in columns.values()] for row in rows]
    return table(tuple(columns), shown, **more)


def counted(states: Iterable[str]) -> str:
    """`3 built, 1 failed`."""
    return ", ".join(f"{count} {state}" for state, count in Counter(states).items())


def figure(path: str, form: str = ".1f", *, unit: int = 1) -> Callable[[Any], str | None]:
    """A column of numbers: `timing.median_ms` is that of the row's `timing`, if it has one."""

    def shown(row: Any) -> str | None:
        for name in path.split("."):
            row = None if row is None else row[name]
        return None if row is None else format(row / unit, form)

    return shown


def line(text: str, style: str = "") -> Text:
    """A line that may hold text from a file."""
    return Text(printable(text, lines=False), style=style)


def _styled(cell: str | Text) -> Text:
    if isinstance(cell, Text):
        return cell
    return Text(printable(cell), style=_STYLES.get(cell.split(":")[0], ""))


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that chooses its columns when it is drawn, because its width is known only then."""

    headers: tuple[str, ...]
    rows: Sequence[Sequence[Text]]
    title: str | None
    spare: tuple[str, ...]
    wraps: tuple[str, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title is not None:  # Rich would fold its own title at the table's width.
            yield line(self.title, "bold")
        left_out: tuple[str, ...] = ()
        while not self._fits(left_out, options.max_width) and left_out != self.spare:
            left_out = self.spare[: len(left_out) + 1]
        yield self._draw(left_out, whole=self._fits(left_out, options.max_width))
        if left_out:
            words = f"No room for {', '.join(left_out)}: a wider terminal or --json shows them."
            yield line(words, "dim")

    def _fits(self, left_out: Sequence[str], width: int) -> bool:
        needed = -_GAP
        for index, header in enumerate(self.headers):
            if header not in left_out or not header:
                longest = max(cell_len(header), *(row[index].cell_len for row in self.rows), 0)
                needed += _GAP + (min(longest, _WRAPPED) if header in self.wraps else longest)
        return needed <= width

    def _draw(self, left_out: Sequence[str], *, whole: bool) -> RenderableType:
        from rich import box
        from rich.table import Table

        kept = [i for i, header in enumerate(self.headers) if not header or header not in left_out]
        drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for index in kept:
            header = self.headers[index]
            numbers = bool(self.rows) and all(_NUMBER(row[index].plain) for row in self.rows)
            drawn.add_column(
                header,
                justify="right" if numbers else "left",
                overflow="fold",
                no_wrap=whole and header not in self.wraps,
            )
        for row in self.rows:
            drawn.add_row(*(row[index] for index in kept))
        return drawn


# With what may stand behind a number: a speed-up, a note, a unit.
_NUMBER = re.compile(r"([-~+]?[\d.e]+( %)?|–|inf|nan)?( ?\d+(\.\d+)?×)?( \[\d+\])?").fullmatch


def tree(value: object) -> RenderableType:
    """Nested plain data, as YAML."""
    import yaml

    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=_ENDLESS, default_flow_style=None
    )
    return Text(printable(text.rstrip()))
