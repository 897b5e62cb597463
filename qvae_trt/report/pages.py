"""Reports from the templates beside this file: `latency.md` and the self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qvae_trt.bench.results import REFERENCE
from qvae_trt.report import markdown, svg
from qvae_trt.report.model import mean_text
from qvae_trt.report.numbers import times

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qvae_trt.report.model import Contrast, Entry, Report, Table

_WIDE = 1040
_NARROW = 344
_STYLE = Path(__file__).with_name("page.css")


def markdown_page(report: Report, *, charts: Sequence[str] = ()) -> str:
    """The whole report of one result; `charts` are file names of pictures beside it."""
    template = _templates().get_template("latency.md.jinja")
    return template.render(report=report, charts=charts, reference=REFERENCE).rstrip() + "\n"


def html_page(reports: Sequence[Report], names: Sequence[str], contrast: Contrast | None) -> str:
    """The document.

    Args:
        names: what each report is called.
        contrast: of several reports, what they have in common.
    """
    style = Markup(_STYLE.read_text("utf-8") + svg.style())  # noqa: S704  our own
    template = _templates().get_template("page.html.jinja")
    return template.render(reports=reports, names=names, contrast=contrast, style=style)


def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("qvae_trt", "report"),
        autoescape=select_autoescape(["html.jinja"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"text": markdown.text, "table": _table, "mean": mean_text}
    templates.filters |= {"times": times, "wide": _wide, "narrow": _narrow}
    return templates


def _wide(charts: Sequence[svg.Chart]) -> Markup:
    columns = min(len(charts), 2)
    drawn = svg.document(charts, width=_WIDE * columns // 2, columns=columns, alone=False)
    return Markup(drawn)  # noqa: S704  `document` escapes


def _narrow(charts: Sequence[svg.Chart]) -> Markup:
    return Markup(svg.document(charts, width=_NARROW, alone=False))  # noqa: S704


def _table(shown: Table) -> str:
    """In Markdown."""
    rows = [[_entry(entry) for entry in row] for row in shown.rows]
    if shown.means:
        rows.append(["mean speed-up", *map(mean_text, shown.means)])
    head = [markdown.text(name) for name in shown.head]
    return "\n".join(markdown.table(head, rows, words=shown.words))


def _entry(entry: Entry) -> str:
    shown = markdown.code(entry.text) if entry.code else markdown.text(entry.text)
    if entry.best:
        shown = f"**{shown}**"
    if entry.ratio is not None:
        shown += f" ({times(entry.ratio)})"
    return f"{shown} \\[{entry.note}\\]" if entry.note else shown
