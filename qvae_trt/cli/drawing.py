"""Tables on the screen, all in one style."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

_LONGEST_LIST = 24

# A word that a cell starts with, and the colour that the cell gets.
_STYLES = {
    "ok": "green",
    "passed": "green",
    "error": "bold red",
    "built": "green",
    "chosen": "bold green",
    "kept": "cyan",
    "planned": "cyan",
    "warn": "yellow",
    "fail": "bold red",
    "failed": "bold red",
    "broken": "bold red",
}


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> RenderableType:
    """A table; columns of numbers are set to the right, and words of state are coloured."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, header in enumerate(headers):
        numbers = all(_is_number(row[index]) for row in rows) and bool(rows)
        drawn.add_column(header, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=_STYLES.get(cell.split(":")[0], "")) for cell in row))
    # Rich would fold its own title at the table's width.
    return drawn if title is None else Group(Text(title, style="bold"), drawn)


def _is_number(text: str) -> bool:
    return (
        text in {"", "–", "inf", "nan"}
        or text.removeprefix("-").replace(".", "", 1).replace("e", "").isdigit()
    )


def stacked(*drawn: RenderableType) -> RenderableType:
    """One below the other."""
    from rich.console import Group

    return Group(*drawn)


def tree(title: str, value: object) -> RenderableType:
    """Nested plain data as an indented tree; long lists are cut, with their length."""
    from rich.tree import Tree

    root = Tree(_plain(title))
    _grow(root, value)
    return root


def _grow(node: Tree, value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, dict | list) and item and not _is_flat(item):
                _grow(node.add(_plain(str(key))), item)
            else:
                node.add(_plain(f"{key}: {_inline(item)}"))
    elif isinstance(value, list):
        for item in value[:_LONGEST_LIST]:
            node.add(_plain(_inline(item)))
        if len(value) > _LONGEST_LIST:
            node.add(_plain(f"… {len(value)} in all; --json has every one"))


def _is_flat(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(i, int | float | str) for i in value)
        and len(value) < 8
    )


def _inline(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return (
            "x".join(str(item) for item in value)
            if _is_flat(value)
            else ", ".join(map(_inline, value))
        )
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _plain(text: str) -> Text:
    from rich.text import Text

    return Text(text)
