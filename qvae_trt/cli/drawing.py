"""Tables on the screen, all in one style."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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


class Table:
    """A table that chooses its columns when it is drawn, because its width is known only then.
    Columns of numbers are set to the right, and words of state are coloured.

    Args:
        headers, rows: as text, which may come from a file.
        title: a line above it.
        spare: columns to leave out, the first one first, where a terminal is too narrow for all;
            a line below says so.
        wraps: columns of words that may take several lines; without it the last.
    """

    def __init__(
        self,
        headers: Sequence[str],
        rows: Sequence[Sequence[str | Text]],
        *,
        title: str | None = None,
        spare: Sequence[str] = (),
        wraps: Sequence[str] = (),
    ) -> None:
        names = [printable(header, lines=False) for header in headers]
        self._title, self._spare, self._wraps = title, spare, wraps or names[-1:]
        self._columns = [(name, [_styled(row[i]) for row in rows]) for i, name in enumerate(names)]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich import box, table

        if self._title is not None:  # Rich would fold its own title at the table's width.
            yield line(self._title, "bold")
        kept, left_out = self._columns, []
        for name in self._spare:
            if not self._fits(kept, options.max_width):
                left_out.append(name)
                kept = [column for column in kept if column[0] != name]
        whole = self._fits(kept, options.max_width)
        drawn = table.Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name, cells in kept:
            numbers = bool(cells) and all(_NUMBER(cell.plain) for cell in cells)
            drawn.add_column(
                name,
                justify="right" if numbers else "left",
                overflow="fold",
                no_wrap=whole and name not in self._wraps,
            )
        for row in zip(*(cells for _, cells in kept), strict=True):
            drawn.add_row(*row)
        yield drawn
        if left_out:
            words = f"No room for {', '.join(left_out)}: a wider terminal or --json shows them."
            yield line(words, "dim")

    def _fits(self, columns: Sequence[tuple[str, list[Text]]], width: int) -> bool:
        needed = _GAP * (len(columns) - 1)
        for name, cells in columns:
            longest = max(cell_len(name), *(cell.cell_len for cell in cells), 0)
            needed += min(longest, _WRAPPED) if name in self._wraps else longest
        return needed <= width


def records(rows: Sequence[Any], columns: Mapping[str, Any], **more: Any) -> RenderableType:
    """A table of plain data. Each column is named by its header, and is the name of a value or a
    function of the row; None is shown as a dash. `more` goes to `Table`.
    """

    def cell(row: Any, column: Any) -> str:
        value = row[column] if isinstance(column, str) else column(row)
        return "–" if value is None else str(value)

    shown = [[cell(row, column) for column in columns.values()] for row in rows]
    return Table(tuple(columns), shown, **more)


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


# With what may stand behind a number: a speed-up, a note, a unit.
_NUMBER = re.compile(r"([-~+]?[\d.e]+( %)?|–|inf|nan)?( ?\d+(\.\d+)?×)?( \[\d+\])?").fullmatch


def tree(value: object) -> RenderableType:
    """Nested plain data, as YAML."""
    import yaml

    text = yaml.safe_dump(
        value, sort_keys=False, allow_unicode=True, width=_ENDLESS, default_flow_style=None
    )
    return Text(printable(text.rstrip()), no_wrap=True, overflow="ignore")
