"""`qvae verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.events import steps
from qvae_trt.cli.options import (
    ENGINE_DIR,
    MODEL,
    BackendOption,
    EngineDirOption,
    JsonOption,
    ModelOption,
    ResolutionsOption,
    VerboseOption,
    parse_resolutions,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qvae_trt.verify import VerifyReport


def verify(
    resolution: ResolutionsOption = None,
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    engine_dir: EngineDirOption = ENGINE_DIR,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Also write parity.md and parity.json here."),
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare the engines with PyTorch fp32.

    Every engine that can run here is compared. Exit code 1 if a bound is broken.
    """
    from qvae_trt.files.writing import check_writable

    sizes = parse_resolutions(resolution)
    if out is not None:
        for name in ("parity.md", "parity.json"):
            check_writable(out / name)

    from qvae_trt.verify import verify as run

    with steps("verify") as step:
        report = run(
            engine_dir,
            model=model,
            resolutions=sizes,
            backend=backend,
            on_event=lambda e: step(f"{e.engine} {e.resolution} {e.input}", e.done, e.total),
        )
    if out is not None:
        report.write_markdown(out / "parity.md")
        output.save_json(out / "parity.json", report.to_dict())
    output.emit(report.to_dict(), lambda: _table(report))
    report.require()


def _table(report: VerifyReport) -> RenderableType:
    """As in parity.md, with an engine by its kind: its path alone would fill a terminal."""
    headings, lines = report.table()
    named = [
        (f"{row.mode} {row.part}" if row.mode and row.part else row.engine, *line[1:])
        for row, line in zip(report.rows, lines, strict=True)
    ]
    spare = ("max abs", "rel L2", "cosine", "power", "vs bf16")
    return table(headings, named, title=report.summary, spare=spare)
