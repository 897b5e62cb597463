"""A bench result on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from qvae_trt.bench.results import REFERENCE
from qvae_trt.cli.drawing import line, table
from qvae_trt.report.numbers import ms, times

if TYPE_CHECKING:
    from qvae_trt.bench.compare import Changes
    from qvae_trt.report.model import Entry, Report, Table


def screen(report: Report) -> RenderableType:
    """All tables of a result and the notes that belong to them, to be printed at once."""
    absent = dict(pair for part in report.parts for pair in part.absent)
    return Group(
        line(report.title, "bold"),
        line(report.subtitle),
        *(line(remark, "yellow") for remark in report.remarks),
        f"Median; behind it the speed-up over {REFERENCE}, the fastest in bold. {report.spread}",
        *(_table(part.latencies, part.latencies.title) for part in report.parts),
        *(_table(shown, f"{shown.title}, ms") for shown in report.service),
        "",
        *(line(f"{path} was not measured: {why}", "dim") for path, why in absent.items()),
        *(line(f"[{number}] {note}", "dim") for number, note in enumerate(report.notes, 1)),
    )


def comparison_table(comparison: Changes) -> RenderableType:
    """Every latency of a comparison; what left the margin is named, and coloured."""
    rows = []
    for change in comparison.changes:
        direction = comparison.direction(change)
        style = {"worse": "bold red", "better": "green"}.get(direction, "")
        medians = (ms(change.old_ms), ms(change.new_ms))
        marked = (line(change.reason, style), Text(direction, style=style))
        rows.append((change.what, str(change.resolution), line(change.path), *medians, *marked))
    return Group(
        "",
        table(
            ("what", "size", "path", "old ms", "new ms", "change", ""),
            rows,
            title=f"New against old, margin {comparison.margin:.0%}",
            wraps=("change",),
        ),
        *map(line, comparison.notes),
    )


def _table(shown: Table, title: str) -> RenderableType:
    rows = [[_entry(entry) for entry in row] for row in shown.rows]
    if shown.means:
        sizes = max(mean[1] for mean in shown.means if mean is not None)
        told = "mean" if sizes == len(rows) else f"mean of {sizes}"
        rows.append([Text(told), *(Text("" if m is None else times(m[0])) for m in shown.means)])
    return Group("", table(shown.head, rows, title=title, wraps=("",)))


def _entry(entry: Entry) -> Text:
    shown = line(entry.text, "bold" if entry.best else "")
    if entry.ratio is not None:
        shown.append(f" {times(entry.ratio)}", style=_shade(entry.ratio))
    if entry.note:
        shown.append(f" [{entry.note}]", style="dim")
    return shown


def _shade(ratio: float) -> str:
    if ratio < 0.98:
        return "red"
    return "bold green" if ratio >= 2 else "green" if ratio > 1.02 else "yellow"
