"""A bench result as Rich tables for the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qvae_trt.bench.results import REFERENCE
from qvae_trt.errors import printable
from qvae_trt.report import view

if TYPE_CHECKING:
    from qvae_trt.bench.compare import Comparison
    from qvae_trt.bench.results import BenchResult


def screen(result: BenchResult) -> Group:
    """All tables of a result and the notes that belong to them, to be printed at once."""
    notes = view.Footnotes()
    shown: list[Table | Text] = [
        _line(view.title(result), "bold"),
        _line(view.subtitle(result)),
    ]
    shown += [_line(remark, "yellow") for remark in view.remarks(result)]
    shown.append(Text(f"Median; behind it the speed-up over {REFERENCE}, the fastest in bold.\n"))
    absent: dict[str, str] = {}
    for part in ("decoder", "encoder"):
        if part in result.parts:
            rows = view.part_table(result, part, notes)
            shown.append(_part(rows))
            absent |= dict(rows.absent)
    shown += [_service(result, kind, notes) for kind in view.service_kinds(result)]
    shown += [_line(f"{path} was not measured: {reason}", "dim") for path, reason in absent.items()]
    shown += [_line(f"[{index}] {note}", "dim") for index, note in enumerate(notes.texts, 1)]
    return Group(*shown)


def comparison_table(comparison: Comparison) -> Table:
    """Every latency of a comparison; what left the margin is named, and coloured."""
    made = _new(
        f"New against old, margin {comparison.margin:.0%}",
        caption=Text("\n").join(map(_line, comparison.notes)) if comparison.notes else None,
        caption_justify="left",
    )
    for name in ("what", "size", "path"):
        made.add_column(name, no_wrap=True)
    for name in ("old ms", "new ms", "change"):
        made.add_column(name, justify="right")
    made.add_column("", no_wrap=True)
    for change in comparison.changes:
        verdict = comparison.verdict(change)
        style = {"worse": "bold red", "better": "green"}.get(verdict, "")
        made.add_row(
            change.what,
            str(change.resolution),
            _line(change.path),
            view.ms(change.old_ms),
            view.ms(change.new_ms),
            _line(change.reason, style),
            Text(verdict, style=style),
        )
    return made


def _line(text: str, style: str = "") -> Text:
    """A line that may hold text from a file."""
    return Text(printable(text, lines=False), style=style)


def _new(title: str, **more: Any) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        **more,
    )


def _part(rows: view.PartTable) -> Table:
    """Latency of one part: a row a size, a column a path, speed-up coloured, the fastest bold."""
    made = _new(f"{rows.part.capitalize()}, ms")
    made.add_column("size", no_wrap=True)
    for path in rows.paths:
        made.add_column(_line(path), justify="right", no_wrap=True)
    for resolution, entries in rows.rows:
        made.add_row(str(resolution), *map(_entry, entries))
    if any(mean is not None for mean in rows.means):
        made.add_section()
        sizes = max(mean[1] for mean in rows.means if mean is not None)
        told = "mean" if sizes == len(rows.rows) else f"mean of {sizes}"
        means = ("" if mean is None else view.times(mean[0]) for mean in rows.means)
        made.add_row(told, *means)
    return made


def _entry(entry: view.Entry) -> Text:
    shown = Text(entry.latency, style="bold" if entry.fastest else "")
    if entry.speedup:
        shown.append(f" {entry.speedup}", style=_shade(entry.ratio))
    if entry.note:
        shown.append(f" [{entry.note}]", style="dim")
    return shown


def _shade(ratio: float | None) -> str:
    if ratio is None:
        return ""
    if ratio < 0.98:
        return "red"
    return "bold green" if ratio >= 2 else "green" if ratio > 1.02 else "yellow"


def _service(result: BenchResult, kind: str, notes: view.Footnotes) -> Table:
    """One kind of service measurement."""
    head, rows = view.service_table(result, kind, notes)
    made = _new(f"{view.SERVICE_TITLES.get(kind, kind)}, ms")
    for name in head:
        words = name in ("size", "after", "path", "processor")
        made.add_column(name, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(_line, row))
    return made
