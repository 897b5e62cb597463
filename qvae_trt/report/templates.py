"""Documents from the templates in `data/templates`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(
    name: str, filters: Mapping[str, Callable[..., object]] | None = None, **values: object
) -> str:
    """Fill in a template. HTML templates escape every value; the Markdown ones escape where they
    say so.
    """
    environment = Environment(
        loader=PackageLoader("qvae_trt", "data/templates"),
        autoescape=select_autoescape(["html.jinja"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(name).render(values).strip() + "\n"
