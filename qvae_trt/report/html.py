"""One self-contained page: tables, charts, machines, and several results side by side."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.report import svg
from qvae_trt.report.model import Entry, mean_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from qvae_trt.report.model import Contrast, PartTables, Report, Table

_WIDE = 1040
_NARROW = 344
#: A ratio below this is shown as slower.
_SLOW = 0.98

_STYLE = Path(__file__).with_name("page.css")


def page(reports: Sequence[Report], names: Sequence[str], contrast: Contrast | None) -> str:
    """The document; every string is escaped here.

    Args:
        names: what each report is called.
        contrast: of several reports, what they have in common.
    """
    heading = reports[0].title if contrast is None else "Qwen-Image VAE latency, compared"
    body = [f"<h1>{escape(heading)}</h1>"]
    if contrast is not None:
        body += [
            _paragraph(f"{len(reports)} results: {'; '.join(names)}.", "sub"),
            "<nav>",
            '<a href="#compared">Side by side</a>',
            *(f'<a href="#r{index}">{escape(name)}</a>' for index, name in enumerate(names)),
            "</nav>",
            *_contrast(contrast, names),
        ]
    for index, (report, name) in enumerate(zip(reports, names, strict=True)):
        if contrast is not None:
            body.append(f'<h2 id="r{index}">{escape(name)}</h2>')
        body.append(_paragraph(f"{report.subtitle}.", "sub"))
        body += _report(report, index)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing on this page may load or run anything.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(heading)}</title><style>{_STYLE.read_text(encoding='utf-8')}{svg.style()}</style></head>\n"
        "<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )


def _report(report: Report, index: int) -> list[str]:
    out = ['<div class="card remark cpu">Measured on a CPU</div>'] if report.on_cpu else []
    out += [f'<div class="card remark">{escape(remark)}</div>' for remark in report.remarks]
    if report.best:
        tiles = (
            f'<div class="tile"><b>{figure}</b>{escape(of)}'
            f'<div class="small">{over}, against stock diffusers</div></div>'
            for figure, of, over in report.best
        )
        out += ['<div class="tiles">', *tiles, "</div>"]
    out += _charts(report.charts["latency"])
    for part in report.parts:
        out += _part(part, index)
    out.append(_paragraph(" ".join(filter(None, (report.spread, report.legend))), "small"))
    out += [*_charts(report.charts["speedup"]), *_charts(report.charts["memory"])]
    if report.service:
        prefix = "" if index == 0 else f"-{index}"
        out.append(f'<h2 id="service{prefix}">What a server sees</h2>')
        out += _charts(report.charts["service"])
    for table in report.service:
        out.append(f"<h3>{escape(table.title)}, ms</h3>")
        out += [_paragraph(table.text, "small")] if table.text else []
        out.append(_table(table, index))
    if report.notes:
        notes = (
            f'<li id="n{index}-{number}">{escape(text)}</li>'
            for number, text in enumerate(report.notes, 1)
        )
        out += ['<h3>Notes</h3><ol class="small">', *notes, "</ol>"]
    out.append("<h3>Spread, memory, share of the arithmetic floor</h3>")
    for part in report.parts:
        count = len(part.details.rows)
        out.append(f"<details><summary>{part.title}: {count} measurements</summary>")
        out += [_table(part.details), "</details>"]
    out += ["<h3>How it was measured</h3>", _paragraph(report.method)]
    for machine in report.machines:
        out += [f"<h3>{machine.title}</h3>", _table(machine, kind="facts")]
    return out


def _charts(made: Sequence[svg.Chart]) -> list[str]:
    if not made:
        return []
    columns = min(len(made), 2)
    wide = svg.document(made, width=_WIDE * columns // 2, columns=columns, alone=False)
    narrow = svg.document(made, width=_NARROW, alone=False)
    half = " half" if columns == 1 else ""
    both = f'<div class="chart wide{half}">{wide}</div><div class="chart narrow">{narrow}</div>'
    return [f'<div class="card">{both}</div>']


def _part(part: PartTables, index: int) -> list[str]:
    shown = part.latencies
    nothing = _paragraph("Nothing could be measured.")
    absent = [f"{path} was not measured: {reason}" for path, reason in part.absent]
    return [
        f"<h3>{shown.title}</h3>",
        _table(shown, index) if len(shown.head) > 1 else nothing,
        *(_paragraph(words, "small") for words in absent),
    ]


def _contrast(contrast: Contrast, names: Sequence[str]) -> list[str]:
    out = ['<h2 id="compared">Side by side</h2>']
    if not contrast.tables:
        return [*out, _paragraph("These results have no measurement in common.")]
    words = f"Median in ms; behind it, how many times faster than in the first ({names[0]})."
    out += [_paragraph(words, "small"), *_charts(contrast.charts)]
    for table in contrast.tables:
        out += [f"<h3>{table.title}</h3>", _table(table, kind="many")]
    return [*out, "<h3>What differs</h3>", _table(contrast.differing, kind="many")]


def _table(table: Table, index: int = 0, *, kind: str = "") -> str:
    """The notes that its entries refer to are those of the report `index`."""

    def row(entries: Iterable[Entry], tag: str = "td") -> str:
        cells = (_entry(e, tag, index, place < table.words) for place, e in enumerate(entries))
        return f"<tr>{''.join(cells)}</tr>"

    heads = (Entry(text=name) for name in table.head)
    head = f"<thead>{row(heads, 'th')}</thead>" if any(table.head) else ""
    body = "".join(map(row, table.rows))
    foot = ""
    if table.means:
        means = ("mean speed-up", *map(mean_text, table.means))
        foot = f"<tfoot>{row(Entry(text=mean) for mean in means)}</tfoot>"
    named = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{named}>{head}<tbody>{body}</tbody>{foot}</table></div>'


def _entry(entry: Entry, tag: str, index: int, word: bool) -> str:
    kind = "best" if entry.best else "w" if word else ""
    marked = f' class="{kind}"' if kind else ""
    slow = ' class="slow"' if entry.ratio is not None and entry.ratio < _SLOW else ""
    speed = f"<i{slow}>{escape(entry.speedup)}</i>" if entry.speedup else ""
    note = f'<sup><a href="#n{index}-{entry.note}">{entry.note}</a></sup>' if entry.note else ""
    shown = f"<code>{escape(entry.text)}</code>" if entry.code else escape(entry.text)
    return f"<{tag}{marked}>{shown}{speed}{note}</{tag}>"


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
