"""A result as Markdown that GitHub renders as it is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvae_trt.bench.results import REFERENCE, BenchResult
from qvae_trt.report import view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEADINGS = {"decoder": "Decode", "encoder": "Encode"}


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
    lines = [
        "| " + " | ".join(head) + " |",
        "| " + " | ".join("---" if place < words else "---:" for place in range(len(head))) + " |",
    ]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def markdown(result: BenchResult, *, charts: Sequence[str] = ()) -> str:
    """The whole report of one result; `charts` are file names of pictures beside it."""
    notes = view.Footnotes()
    lines = [f"# {text(view.title(result))}", "", text(view.subtitle(result)) + ".", ""]
    for remark in view.remarks(result):
        lines += [f"> {text(remark)}", ">"]
    if lines[-1] == ">":
        lines[-1] = ""
    lines.append(
        f"Milliseconds, median; in brackets the speed-up over `{REFERENCE}`; the fastest is bold."
    )
    lines.append("")
    for part in ("decoder", "encoder"):
        if part not in result.parts:
            continue
        lines += _part(view.part_table(result, part, notes))
    lines += [text(view.legend(result)), ""]
    # After the tables: the charts of twenty sizes are taller than any screen.
    for name in charts:
        lines += [f"![{name.partition('.')[0]} by size]({name})", ""]
    lines += _service(result, notes)
    if notes.texts:
        lines += ["## Notes", ""]
        lines += [f"{index}. {text(note)}" for index, note in enumerate(notes.texts, 1)]
        lines.append("")
    lines += ["## Details", ""]
    for part in ("decoder", "encoder"):
        if part in result.parts:
            rows = [tuple(map(text, row)) for row in view.detail_rows(result, part)]
            lines += [
                f"<details><summary>{_HEADINGS[part]}: spread, memory, floor</summary>",
                "",
            ]
            lines += table(view.DETAIL_HEAD, rows, words=2)
            lines += ["", "</details>", ""]
    lines += ["## How it was measured", "", text(view.method(result)), ""]
    for index, run in enumerate(result.runs, 1):
        lines += [f"### Machine{f', run {index}' if len(result.runs) > 1 else ''}", ""]
        lines += table(
            ("", ""),
            [
                (text(name), code(value) if name in ("command", "weights sha256") else text(value))
                for name, value in view.machine_rows(run)
            ],
            words=2,
        )
        lines.append("")
    return "\n".join(lines)


def _part(rows: view.PartTable) -> list[str]:
    lines = [f"## {_HEADINGS[rows.part]}", ""]
    if rows.paths:
        body = [(str(resolution), *map(_cell, entries)) for resolution, entries in rows.rows]
        if any(mean is not None for mean in rows.means):
            body.append(("mean speed-up", *(view.mean_text(mean) for mean in rows.means)))
        lines += [*table(("size", *map(text, rows.paths)), body), ""]
    else:
        lines += ["Nothing could be measured.", ""]
    for path, reason in rows.absent:
        lines += [f"- {text(path)} was not measured: {text(reason)}"]
    return [*lines, ""] if rows.absent else lines


def _cell(entry: view.Entry) -> str:
    latency = f"**{entry.latency}**" if entry.fastest else entry.latency
    speed = f" ({entry.speedup})" if entry.speedup else ""
    return f"{latency}{speed}" + (f" \\[{entry.note}\\]" if entry.note else "")


def _service(result: BenchResult, notes: view.Footnotes) -> list[str]:
    kinds = view.service_kinds(result)
    lines = ["## What a server sees", "", "Milliseconds on the host.", ""] if kinds else []
    for kind in kinds:
        head, rows = view.service_table(result, kind, notes)
        lines += [f"### {text(view.SERVICE_TITLES.get(kind, kind))}", ""]
        if kind in view.SERVICE_TEXT:
            lines += [view.SERVICE_TEXT[kind], ""]
        words = sum(name in ("size", "after", "path", "processor") for name in head)
        lines += [*table(head, [tuple(map(text, row)) for row in rows], words=words), ""]
    return lines
