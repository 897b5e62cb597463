"""A report as Markdown that GitHub renders as it is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvae_trt.bench.results import REFERENCE
from qvae_trt.report.model import mean_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qvae_trt.report.model import Entry, PartTables, Report, Table


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> list[str]:
    """Lines of a table whose first `words` columns are words and whose others are numbers."""
    rules = ["---" if place < words else "---:" for place in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rules, *rows)]


def markdown(report: Report, *, charts: Sequence[str] = ()) -> str:
    """The whole report of one result; `charts` are file names of pictures beside it."""
    lines = [f"# {text(report.title)}", "", f"{text(report.subtitle)}.", ""]
    lines += "\n>\n".join(f"> {text(remark)}" for remark in report.remarks).splitlines()
    lines += [""] if report.remarks else []
    lines.append(
        f"Milliseconds, median; in brackets the speed-up over `{REFERENCE}`; the fastest is bold. "
        f"{text(report.spread)}".rstrip()
    )
    lines.append("")
    for part in report.parts:
        lines += _part(part)
    lines += [text(report.legend), ""]
    # After the tables: the charts of twenty sizes are taller than any screen.
    for name in charts:
        lines += [f"![{name.partition('.')[0]} by size]({name})", ""]
    if report.service:
        lines += ["## What a server sees", "", "Milliseconds on the host.", ""]
    for shown in report.service:
        lines += [f"### {text(shown.title)}", "", *([shown.text, ""] if shown.text else [])]
        lines += [*_table(shown), ""]
    if report.notes:
        notes = [f"{number}. {text(note)}" for number, note in enumerate(report.notes, 1)]
        lines += ["## Notes", "", *notes, ""]
    lines += ["## Details", ""]
    for part in report.parts:
        summary = f"<summary>{part.title}: spread, memory, floor</summary>"
        lines += [f"<details>{summary}", "", *_table(part.details), "", "</details>", ""]
    lines += ["## How it was measured", "", text(report.method), ""]
    for machine in report.machines:
        lines += [f"### {machine.title}", "", *_table(machine), ""]
    return "\n".join(lines)


def _part(part: PartTables) -> list[str]:
    lines = [f"## {part.title}", ""]
    shown = part.latencies
    lines += _table(shown) if len(shown.head) > 1 else ["Nothing could be measured."]
    lines.append("")
    absent = [f"- {text(path)} was not measured: {text(reason)}" for path, reason in part.absent]
    return [*lines, *absent, ""] if absent else lines


def _table(shown: Table) -> list[str]:
    rows = [[_entry(entry) for entry in row] for row in shown.rows]
    if shown.means:
        rows.append(["mean speed-up", *map(mean_text, shown.means)])
    return table([text(name) for name in shown.head], rows, words=shown.words)


def _entry(entry: Entry) -> str:
    shown = code(entry.text) if entry.code else text(entry.text)
    if entry.best:
        shown = f"**{shown}**"
    if entry.speedup:
        shown += f" ({entry.speedup})"
    return f"{shown} \\[{entry.note}\\]" if entry.note else shown
