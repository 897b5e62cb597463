"""One self-contained page: tables, charts, machines, and several results side by side."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.bench.results import REFERENCE, BenchResult
from qvae_trt.report import charts, svg, view

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HEADINGS = {"decoder": "Decode", "encoder": "Encode"}
_WIDE = 1040
_NARROW = 344

_STYLE = Path(__file__).with_name("page.css")


def page(results: Sequence[BenchResult], names: Sequence[str]) -> str:
    """The document. `names` are what each result is called; every string is escaped here."""
    heading = view.title(results[0]) if len(results) == 1 else "Qwen-Image VAE latency, compared"
    body = [f"<h1>{escape(heading)}</h1>"]
    if len(results) == 1:
        body += [_paragraph(view.subtitle(results[0]) + ".", "sub")]
    else:
        body += [_paragraph(f"{len(results)} results: {'; '.join(names)}.", "sub")]
        body += [
            "<nav>",
            '<a href="#compared">Side by side</a>',
            *(f'<a href="#r{index}">{escape(name)}</a>' for index, name in enumerate(names)),
            "</nav>",
            *_compared(results, names),
        ]
    for index, (result, name) in enumerate(zip(results, names, strict=True)):
        body += _result(result, name, index, alone=len(results) == 1)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing on this page may load or run anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)}</title><style>{_STYLE.read_text(encoding='utf-8')}{svg.style()}</style></head>\n"
        "<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _result(result: BenchResult, name: str, index: int, *, alone: bool) -> list[str]:
    notes = view.Footnotes()
    out: list[str] = []
    if not alone:
        out += [
            f'<h2 id="r{index}">{escape(name)}</h2>',
            _paragraph(view.subtitle(result) + ".", "sub"),
        ]
    out += [f'<div class="card remark">{escape(remark)}</div>' for remark in view.remarks(result)]
    out += _tiles(result)
    out += _charts(charts.latency(result))
    for part in ("decoder", "encoder"):
        if part in result.parts:
            out += _part(view.part_table(result, part, notes), index)
    out.append(_paragraph(view.legend(result), "small"))
    for made in (charts.speedup(result), charts.memory(result)):
        out += _charts(made)
    out += _service(result, notes, index)
    if notes.texts:
        out.append('<h3>Notes</h3><ol class="small">')
        out += [
            f'<li id="n{index}-{number}">{escape(text)}</li>'
            for number, text in enumerate(notes.texts, 1)
        ]
        out.append("</ol>")
    out.append("<h3>Spread, memory, share of the arithmetic floor</h3>")
    for part in ("decoder", "encoder"):
        if part in result.parts:
            rows = view.detail_rows(result, part)
            out.append(f"<details><summary>{_HEADINGS[part]}: {len(rows)} measurements</summary>")
            out += [*_table(view.DETAIL_HEAD, rows, words=2), "</details>"]
    out += ["<h3>How it was measured</h3>", _paragraph(view.method(result))]
    for number, run in enumerate(result.runs, 1):
        which = f", run {number}" if len(result.runs) > 1 else ""
        facts = "".join(
            f"<tr><td>{escape(fact)}</td><td>{_value(fact, value)}</td></tr>"
            for fact, value in view.machine_rows(run)
        )
        out.append(
            f'<h3>Machine{which}</h3><div class="scroll"><table class="facts">{facts}</table></div>'
        )
    return out


def _value(fact: str, value: str) -> str:
    shown = escape(value)
    return f"<code>{shown}</code>" if fact in ("command", "weights sha256") else shown


def _tiles(result: BenchResult) -> list[str]:
    """The best mean speed-ups, as the figures to remember."""
    found = []
    for part in ("decoder", "encoder"):
        if part not in result.parts:
            continue
        means = [
            (mean, path)
            for path in result.paths
            if path != REFERENCE and (mean := result.mean_speedup(part, path)) is not None
        ]
        for (ratio, count), path in sorted(means, reverse=True)[:2]:
            sizes = "1 size" if count == 1 else f"{count} sizes"
            found.append(
                f'<div class="tile"><b>{view.times(ratio)}</b>'
                f"{_HEADINGS[part].lower()}, {escape(path)}"
                f'<div class="small">mean over {sizes}, against stock diffusers</div></div>'
            )
    return ['<div class="tiles">', *found, "</div>"] if found else []


def _charts(made: Sequence[svg.Chart]) -> list[str]:
    if not made:
        return []
    columns = min(len(made), 2)
    wide = svg.document(
        made, width=_WIDE if columns == 2 else _WIDE // 2, columns=columns, alone=False
    )
    narrow = svg.document(made, width=_NARROW, alone=False)
    half = " half" if columns == 1 else ""
    return [
        (
            f'<div class="card"><div class="chart wide{half}">{wide}</div>'
            f'<div class="chart narrow">{narrow}</div></div>'
        )
    ]


def _part(rows: view.PartTable, index: int) -> list[str]:
    out = [f"<h3>{_HEADINGS[rows.part]}, ms</h3>"]
    if rows.paths:
        head = "".join(f"<th>{escape(name)}</th>" for name in ("size", *rows.paths))
        body = "".join(
            f"<tr><td>{resolution}</td>{''.join(_entry(e, index) for e in entries)}</tr>"
            for resolution, entries in rows.rows
        )
        foot = ""
        if any(mean is not None for mean in rows.means):
            cells = "".join(f"<td>{escape(view.mean_text(mean))}</td>" for mean in rows.means)
            foot = f"<tfoot><tr><td>mean speed-up</td>{cells}</tr></tfoot>"
        out.append(_scroll(f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}"))
    else:
        out.append(_paragraph("Nothing could be measured."))
    out += [
        _paragraph(f"{path} was not measured: {reason}", "small") for path, reason in rows.absent
    ]
    return out


def _entry(entry: view.Entry, index: int) -> str:
    kind = ' class="best"' if entry.fastest else ""
    slow = ' class="slow"' if entry.ratio is not None and entry.ratio < 0.98 else ""
    speed = f"<i{slow}>{escape(entry.speedup)}</i>" if entry.speedup else ""
    note = f'<sup><a href="#n{index}-{entry.note}">{entry.note}</a></sup>' if entry.note else ""
    return f"<td{kind}>{escape(entry.latency)}{speed}{note}</td>"


def _service(result: BenchResult, notes: view.Footnotes, index: int) -> list[str]:
    kinds = view.service_kinds(result)
    if not kinds:
        return []
    prefix = "" if index == 0 else f"-{index}"
    out = [f'<h2 id="service{prefix}">What a server sees</h2>', *_charts(charts.service(result))]
    for kind in kinds:
        head, rows = view.service_table(result, kind, notes)
        out.append(f"<h3>{escape(view.SERVICE_TITLES.get(kind, kind))}, ms</h3>")
        if kind in view.SERVICE_TEXT:
            out.append(_paragraph(view.SERVICE_TEXT[kind], "small"))
        words = sum(name in ("size", "after", "path", "processor") for name in head)
        out += _table(head, rows, words=words)
    return out


def _compared(results: Sequence[BenchResult], names: Sequence[str]) -> list[str]:
    rows = view.contrasts(results)
    out = ['<h2 id="compared">Side by side</h2>']
    if not rows:
        return [*out, _paragraph("These results have no measurement in common.")]
    out.append(
        _paragraph(
            f"Median in ms; behind it, how many times faster than in the first ({names[0]}).",
            "small",
        )
    )
    out += _charts(charts.contrast(results, names))
    for part in ("decoder", "encoder"):
        found = [row for row in rows if row.part == part]
        if not found:
            continue
        head = '<th>size</th><th class="w">path</th>' + "".join(
            f"<th>{escape(name)}</th>" for name in names
        )
        body = []
        for row in found:
            known = [m for m in row.medians if m is not None]
            cells = [
                _contrast_cell(median, None if place == 0 else ratio, median == min(known))
                for place, (median, ratio) in enumerate(zip(row.medians, row.ratios, strict=True))
            ]
            body.append(
                f'<tr><td>{row.resolution}</td><td class="w">{escape(row.path)}</td>'
                f"{''.join(cells)}</tr>"
            )
        out.append(
            f"<h3>{_HEADINGS[part]}, ms</h3>"
            + _scroll(f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>", kind="many")
        )
    out.append("<h3>What differs</h3>")
    facts = [dict(_differing(result)) for result in results]
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    rows_out = [
        (key, *(fact.get(key, "–") for fact in facts))
        for key in keys
        if len({fact.get(key) for fact in facts}) > 1
    ]
    return [*out, *_table(("", *names), rows_out, words=len(names) + 1, kind="many")]


def _differing(result: BenchResult) -> list[tuple[str, str]]:
    rows = [
        row for row in view.machine_rows(result.runs[0]) if not row[0].startswith("temperature")
    ]
    return [("engines", ", ".join(view.engine_flavours(result)) or "–"), *rows]


def _contrast_cell(median: float | None, ratio: float | None, best: bool) -> str:
    if median is None:
        return "<td>–</td>"
    slow = ' class="slow"' if ratio is not None and ratio < 0.98 else ""
    speed = "" if ratio is None else f"<i{slow}>{view.times(ratio)}</i>"
    kind = ' class="best"' if best else ""
    return f"<td{kind}>{view.ms(median)}{speed}</td>"


def _table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int, kind: str = ""
) -> list[str]:
    def cell(tag: str, place: int, text: str) -> str:
        kind = ' class="w"' if place < words else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    top = "".join(cell("th", place, text) for place, text in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>"
        for row in rows
    )
    return [_scroll(f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody>", kind=kind)]


def _scroll(inside: str, *, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{named}>{inside}</table></div>'


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
