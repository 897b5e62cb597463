"""`qvae verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import Table, line
from qvae_trt.cli.events import show_progress
from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from qvae_trt.verify import VerifyReport


def verify(
    resolution: list[Resolution] | None = options.size_option(
        None, "A size, such as 1664x928; can be repeated. [default: every engine at its own sizes]"
    ),
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    out: Path | None = Option(
        None, metavar="DIR", help="Also write parity.md and parity.json here."
    ),
) -> None:
    """Compare the engines with PyTorch fp32.

    Every engine that can run here is compared. Exit code 1 if an engine exceeds its tolerance.
    """
    sizes = tuple(dict.fromkeys(resolution or ()))

    from qvae_trt.files.writing import check_writable, write_text

    if out is not None:
        for name in ("parity.md", "parity.json"):
            check_writable(out / name)

    from qvae_trt.verify import verify as run

    with show_progress("verify") as on_event:
        report = run(engine_dir, model=model, resolutions=sizes, backend=backend, on_event=on_event)
    if out is not None:
        write_text(out / "parity.md", report.to_markdown())
        write_text(out / "parity.json", output.to_json(report.to_dict()))
    output.emit(report.to_dict(), lambda _: draw(report))
    report.require()


def draw(report: VerifyReport) -> RenderableType:
    """The rows of parity.md, with each engine named by its kind, because its path would fill a
    terminal.
    """
    from qvae_trt.verify.report import HEADINGS

    rows = [
        (f"{row.mode} {row.part}" if row.mode and row.part else row.engine, *row.cells()[1:])
        for row in report.rows
    ]
    spare = ("max abs", "rel L2", "cosine", "power", "vs bf16")
    return Group(Table(HEADINGS, rows, title=report.summary, spare=spare), *map(line, report.notes))
