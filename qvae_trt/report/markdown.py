"""Text and code in Markdown that GitHub renders as it is meant."""

from __future__ import annotations


def text(value: object) -> str:
    """A string that shows as itself in a table cell: no markup, no HTML, one line."""
    plain = " ".join(str(value).split())
    for sign, harmless in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        plain = plain.replace(sign, harmless)
    return "".join(f"\\{sign}" if sign in r"\`*_[]|#~$@" else sign for sign in plain)


def code(value: object) -> str:
    """A string as inline code; backticks inside become quotes, a bar does not end the cell."""
    plain = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else "–"
