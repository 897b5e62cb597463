"""`qvae report RESULTS… --out report.html`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.options import JsonOption, VerboseOption


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="latency.json files of qvae bench.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("report.html"),
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write one page of tables and charts."""
    from qvae_trt import bench
    from qvae_trt.report import write_html

    write_html([bench.load(path) for path in results], out)
    output.emit({"path": str(out), "results": [str(p) for p in results]}, lambda: str(out))
