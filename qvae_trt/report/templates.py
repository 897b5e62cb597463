"""Documents from the templates in `data/templates`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

_ENVIRONMENT = Environment(
    loader=PackageLoader("qvae_trt", "data/templates"),
    autoescape=select_autoescape(["html.jinja", "svg.jinja"], default=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, filters: Mapping[str, Any] | None = None, **values: object) -> str:
    """Fill in a template, which may use these functions as filters. Those of HTML and SVG escape
    every value; the Markdown ones escape where they say so.
    """
    _ENVIRONMENT.filters.update(filters or {})
    return _ENVIRONMENT.get_template(name).render(values).strip() + "\n"


#: The words of a report: titles by name, and macros for `say`.
WORDS: Any = _ENVIRONMENT.get_template("words.txt.jinja").module


def say(macro: str, *values: object) -> str:
    """What a macro of `WORDS` makes of these values."""
    return getattr(WORDS, macro)(*values).strip()
