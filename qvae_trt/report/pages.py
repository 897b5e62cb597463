"""Bench reports as documents: `latency.md`, and the self-contained page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qvae_trt.bench.results import REFERENCE
from qvae_trt.report import markdown, svg
from qvae_trt.report.model import Contrast, Entry, Report, Table, mean_text
from qvae_trt.report.numbers import times
from qvae_trt.report.templates import render


def markdown_page(report: Report, *, charts: Sequence[str] = ()) -> str:
    """The whole report of one result; `charts` are file names of pictures beside it."""
    filters = {"text": markdown.text, "table": _table}
    return render("latency.md.jinja", filters, report=report, charts=charts, reference=REFERENCE)


def html_page(reports: Sequence[Report], names: Sequence[str], contrast: Contrast | None) -> str:
    """The document.

    Args:
        names: what each report is called.
        contrast: of several reports, what they have in common.
    """
    filters: dict[str, Callable[..., object]]
    filters = {"times": times, "mean": mean_text, "drawn": _drawn}
    return render("page.html.jinja", filters, reports=reports, names=names, contrast=contrast)


def _drawn(charts: Sequence[svg.Chart], width: int, columns: int = 1) -> str:
    return svg.document(charts, width=width, columns=columns, alone=False)


def _table(shown: Table) -> str:
    """A table in Markdown."""
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
