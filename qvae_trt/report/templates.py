"""Documents from the templates in `data/templates`; how they write numbers and texts."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

# --- numbers as text, the same in every form of a report ------------------------------------------


def ms(value: float | None) -> str:
    """Milliseconds with three or four digits that mean something.

    >>> ms(0.1234), ms(27.55), ms(2304.4), ms(None)
    ('0.12', '27.6', '2304', '–')
    """
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float) -> str:
    return f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 100:.0f} %" if value >= 0.01 else f"{value * 100:.2g} %"


def sizes(count: int) -> str:
    return "1 size" if count == 1 else f"{count} sizes"


def mean(speedup: tuple[float, int] | None) -> str:
    """A mean speed-up, and over how many sizes."""
    return "" if speedup is None else f"{times(speedup[0])} ({sizes(speedup[1])})"


# --- text and code in Markdown that GitHub renders as it is meant ---------------------------------


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


# --- documents -----------------------------------------------------------------------------------

_ENVIRONMENT = Environment(
    loader=PackageLoader("qvae_trt", "data/templates"),
    autoescape=select_autoescape(["html.jinja", "svg.jinja"], default=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(text=text, code=code, times=times, mean=mean)


def render(name: str, **values: object) -> str:
    """Fill in a template. Those of HTML and SVG escape every value; the Markdown ones escape where
    they say so.
    """
    return _ENVIRONMENT.get_template(name).render(values).strip() + "\n"


#: The words of a report: titles by name, and macros for `say`.
WORDS: Any = _ENVIRONMENT.get_template("words.txt.jinja").module


def say(macro: str, *values: object) -> str:
    """What a macro of `WORDS` makes of these values."""
    return getattr(WORDS, macro)(*values).strip()
