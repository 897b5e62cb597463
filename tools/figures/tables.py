"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> list[str]:
    """Lines of a table whose first `words` columns are words and whose others are numbers."""
    rules = ["---" if place < words else "---:" for place in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rules, *rows)]
