"""`qvae report RESULTS… --out report.html`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from typer import Argument, Option

from qvae_trt.bench import compare
from qvae_trt.bench.results import REFERENCE, BenchResult, load
from qvae_trt.cli import output


def report(
    results: list[Path] = Argument(
        ..., metavar="RESULTS...", help="latency.json files of qvae bench, or their folders."
    ),
    out: Path = Option(Path("report.html"), metavar="FILE", help="The page to write."),
    merge: Path | None = Option(
        None,
        metavar="DIR",
        help="Merge all results into one table, and write its latency.md, .json, .csv and .svg "
        "here. For runs of one machine and model, such as torch.compile and the engines.",
    ),
) -> None:
    """Write one page of tables and charts.

    Results of several machines, or from before and after a change, are shown side by side.
    """
    from qvae_trt.report import write_html, write_tables

    loaded = [load(path) for path in results]
    written: list[Path] = []
    if merge is not None:
        for cell in _measured_again(loaded):
            output.warn(f"in several files, the first is kept: {cell}")
        loaded = [compare.merge(loaded)]
        written = write_tables(loaded[0], merge)
    write_html(loaded, out)
    written.append(out)
    data = {
        "path": str(out),
        "results": list(map(str, results)),
        "written": list(map(str, written)),
    }
    output.emit(data, lambda d: "\n".join(d["written"]))


def _measured_again(results: Sequence[BenchResult]) -> list[str]:
    """The paths that several results measured. A merge keeps the first of each; `pytorch` is left
    out, since its others become ties.
    """
    seen = Counter(
        (cell.path, cell.part, cell.resolution)
        for result in results
        for cell in result.cells
        if cell.timing is not None and cell.path != REFERENCE
    )
    return sorted({f"{path} {part}" for (path, part, _), count in seen.items() if count > 1})
