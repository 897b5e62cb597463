"""Results of `qvae bench` as files: Markdown, JSON, CSV, SVG, HTML.

`Report` computes what a result shows; the other modules render it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qvae_trt.bench.results import REFERENCE, BenchResult, save
from qvae_trt.errors import UsageError
from qvae_trt.files.writing import write_text
from qvae_trt.json_rows import write
from qvae_trt.report import svg
from qvae_trt.report.model import Report, contrast, labels
from qvae_trt.report.templates import ms, render

__all__ = ["Report", "csv_text", "markdown_page", "write_html", "write_tables"]

_WIDTH = 960
_TIMES = ("median_ms", "p10_ms", "p90_ms", "min_ms", "wall_ms", "runs")
_COLUMNS = (
    *("part", "resolution", "width", "height", "path", *_TIMES, "speedup", "peak_bytes"),
    *("weights_bytes", "floor_ms", "floor_share", "first_ms", "engine", "run", "notes"),
)


def write_tables(result: BenchResult, out: Path) -> list[Path]:
    """Write `latency.json`, `.csv`, `.svg` and `.md` into a folder, and `speedup.svg` and
    `memory.svg` where there is something to show in them. Returns the files, `latency.md` first.

    Raises:
        StoreError: the folder cannot be written.
    """
    report = Report(result)
    save(result, out / "latency.json")
    write_text(out / "latency.csv", csv_text(result))
    pictures = []
    for name in ("latency", "speedup", "memory"):
        path = out / f"{name}.svg"
        if report.charts[name] or name == "latency":
            pictures.append(path)
            write_text(path, _picture(report.charts[name], report.title))
        else:
            # A chart of an earlier result would not match the tables.
            path.unlink(missing_ok=True)
    write_text(out / "latency.md", markdown_page(report, charts=[path.name for path in pictures]))
    return [out / "latency.md", out / "latency.json", out / "latency.csv", *pictures]


def _picture(drawn: Sequence[svg.Chart], title: str) -> str:
    if not drawn:
        nothing = "Nothing was measured."
        drawn = [svg.Chart(title=title, subtitle=nothing, series=(), text=ms)]
    columns = min(len(drawn), 2)
    return svg.document(drawn, width=_WIDTH if columns == 2 else _WIDTH * 2 // 3, columns=columns)


def csv_text(result: BenchResult) -> str:
    """Every cell, measured or not, a line each; numbers as they were measured, bytes as bytes."""
    floors = {(floor.part, floor.resolution, floor.run): floor.floor_ms for floor in result.floors}
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for cell in result.cells:
        row = {name: cell.detail.get(name) for name in ("first_ms", "engine")}
        row |= write(cell) | (write(cell.timing) or {})
        writer.writerow(
            row
            | {
                "width": cell.resolution.width,
                "height": cell.resolution.height,
                "speedup": result.speedup(cell),
                "floor_ms": floors.get((cell.part, cell.resolution, cell.run)),
                "floor_share": result.floor_share(cell),
                "notes": "; ".join(cell.notes),
            }
        )
    return file.getvalue()


def write_html(results: Sequence[BenchResult], out: Path) -> None:
    """Write one self-contained page.

    Several results stand side by side, the first one as the baseline.

    Args:
        results: at least one.
        out: the file.

    Raises:
        UsageError: no result.
        StoreError: the file cannot be written.
    """
    if not results:
        raise UsageError("nothing to report: expected at least one result")
    names = labels(results)
    values = {
        "reports": [Report(result) for result in results],
        "names": names,
        "contrast": contrast(results, names) if len(results) > 1 else None,
        "drawn": partial(svg.document, alone=False),
    }
    write_text(out, render("page.html.jinja", **values))


def markdown_page(report: Report, *, charts: Sequence[str] = ()) -> str:
    """The whole report of one result; `charts` are file names of pictures beside it."""
    return render("latency.md.jinja", report=report, charts=charts, reference=REFERENCE)
