"""Results of `qvae bench` as files: Markdown, JSON, CSV, SVG, HTML."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from qvae_trt.bench.compare import group, merge
from qvae_trt.bench.results import save
from qvae_trt.errors import UsageError
from qvae_trt.files.writing import write_text
from qvae_trt.report import charts, svg, view
from qvae_trt.report.html import page
from qvae_trt.report.markdown import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qvae_trt.bench.results import BenchResult

__all__ = [
    "csv_text",
    "markdown",
    "page",
    "write_html",
    "write_tables",
]

_WIDTH = 960
_COLUMNS = [
    "part",
    "resolution",
    "width",
    "height",
    "path",
    "median_ms",
    "p10_ms",
    "p90_ms",
    "min_ms",
    "wall_ms",
    "runs",
    "speedup",
    "peak_bytes",
    "weights_bytes",
    "floor_ms",
    "floor_share",
    "first_ms",
    "engine",
    "run",
    "notes",
]


def write_tables(result: BenchResult, out: Path) -> list[Path]:
    """Write `latency.json`, `.csv`, `.svg` and `.md` into a folder, and `speedup.svg` and
    `memory.svg` where there is something to show in them. Returns the files, `latency.md` first.

    Raises:
        StoreError: the folder cannot be written.
    """
    pictures = {
        name: drawn
        for name, drawn in (
            ("latency.svg", charts.latency(result)),
            ("speedup.svg", charts.speedup(result)),
            ("memory.svg", charts.memory(result)),
        )
        if drawn or name == "latency.svg"
    }
    save(result, out / "latency.json")
    write_text(out / "latency.csv", csv_text(result))
    for name, drawn in pictures.items():
        write_text(out / name, _picture(drawn, view.title(result)))
    write_text(out / "latency.md", markdown(result, charts=list(pictures)))
    for name in ("speedup.svg", "memory.svg"):
        if name not in pictures:
            # A picture of an earlier result would stand beside tables that it does not belong to.
            (out / name).unlink(missing_ok=True)
    return [out / name for name in ("latency.md", "latency.json", "latency.csv", *pictures)]


def _picture(drawn: Sequence[svg.Chart], title: str) -> str:
    if not drawn:
        drawn = [
            svg.Chart(
                title=title,
                subtitle="Nothing was measured.",
                series=(),
                groups=(),
                text=view.ms,
                labels={},
            )
        ]
    columns = min(len(drawn), 2)
    return svg.document(drawn, width=_WIDTH if columns == 2 else _WIDTH * 2 // 3, columns=columns)


def csv_text(result: BenchResult) -> str:
    """Every cell, measured or not, a line each; numbers as they were measured, bytes as bytes."""
    floors = {(floor.part, floor.resolution, floor.run): floor.floor_ms for floor in result.floors}
    file = io.StringIO()
    writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in result.cells:
        timing = cell.timing
        row: dict[str, object] = {
            "part": cell.part,
            "resolution": str(cell.resolution),
            "width": cell.resolution.width,
            "height": cell.resolution.height,
            "path": cell.path,
            "speedup": result.speedup(cell),
            "peak_bytes": cell.peak_bytes,
            "weights_bytes": cell.weights_bytes,
            "floor_ms": floors.get((cell.part, cell.resolution, cell.run)),
            "floor_share": result.floor_share(cell),
            "first_ms": cell.detail.get("first_ms"),
            "engine": cell.detail.get("engine"),
            "run": cell.run,
            "notes": "; ".join(cell.notes),
        }
        if timing is not None:
            row |= {
                "median_ms": timing.median_ms,
                "p10_ms": timing.p10_ms,
                "p90_ms": timing.p90_ms,
                "min_ms": timing.min_ms,
                "wall_ms": timing.wall_ms,
                "runs": timing.runs,
            }
        writer.writerow({name: "" if value is None else value for name, value in row.items()})
    return file.getvalue()


def write_html(results: Sequence[BenchResult], out: Path) -> None:
    """Write one self-contained page.

    Results of one machine that complete each other (the engines' run and torch.compile's) become
    one table; the others stand side by side, the first one as the measure.

    Args:
        results: at least one.
        out: the file.

    Raises:
        UsageError: no result. StoreError: the file cannot be written.
    """
    if not results:
        raise UsageError(
            "nothing to report", fix="qvae report RESULTS/latency.json --out report.html"
        )
    merged = [merge([results[index] for index in members]) for members in group(results)]
    write_text(out, page(merged, view.labels(merged)))
