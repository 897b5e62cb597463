"""What compares engines with PyTorch: `qvae verify`, `qvae bench`, and `qvae report` of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Group, RenderableType
from rich.text import Text
from typer import Argument, Option

from qvae_trt.bench import compare as comparing
from qvae_trt.bench.results import BASELINES, REFERENCE, BenchResult, load
from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import Table, line
from qvae_trt.files.writing import check_writable, write_text
from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from qvae_trt.report.model import Entry, Report
    from qvae_trt.report.model import Table as Shown
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

    if out is not None:
        for name in ("parity.md", "parity.json"):
            check_writable(out / name)

    from qvae_trt.verify import verify as run

    with output.show_progress("verify") as on_event:
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


def bench(
    resolution: list[Resolution] | None = options.size_option(
        None, "A size, such as 1664x928; can be repeated. At least one is needed."
    ),
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    baseline: list[str] | None = Option(
        None,
        metavar="NAME",
        autocompletion=lambda: list(BASELINES),
        help="pytorch, folded, compiled or fused; can be repeated. "
        "[default: all; on a CPU, all but compiled]",
    ),
    part: options.PartChoice = options.PART_OPTION,
    device: Literal["cuda", "cpu"] | None = Option(
        None, help="Where to measure. [default: the GPU, if there is one]"
    ),
    service: bool = Option(
        False,
        "--service",
        help="Also what a server sees: latents to PIL, first use, switching sizes.",
    ),
    cuda_graphs: bool = Option(
        False, "--cuda-graphs", help="Replay engines from CUDA graphs; not with --service."
    ),
    budget: float = Option(1.0, metavar="SECONDS", help="Seconds for one path at one size."),
    out: Path = Option(
        Path("out/bench"), metavar="DIR", help="The folder for latency.md, .json, .csv and .svg."
    ),
    compare: Path | None = Option(
        None, metavar="OLD.json", help="Exit code 1 if a latency got worse."
    ),
    margin: float = Option(
        0.05, metavar="SHARE", help="How much worse --compare accepts; 0.05 is 5 %."
    ),
) -> int:
    """Measure the latency of PyTorch and of the engines."""
    sizes = tuple(dict.fromkeys(resolution or ()))
    options.need(
        bool(sizes), "no size to measure", fix="for example: qvae bench --resolution 1024x1024"
    )
    comparing.check_margin(margin)
    missing = options.no_folder(engine_dir, sizes[0], backend=backend, model=model)
    if missing is not None:
        # PyTorch alone is worth measuring, but not for somebody who mistyped a folder.
        given = engine_dir != options.ENGINE_DIR
        if given and not baseline:
            raise missing
        if given or not baseline:
            output.warn(f"engines are not measured: {missing}")

    old = None if compare is None else load(compare)
    parts = options.parse_parts(part)
    from qvae_trt.bench import run as measuring
    from qvae_trt.bench.timing import Limits
    from qvae_trt.report import Report, write_tables

    settings = measuring.BenchSettings(
        resolutions=sizes,
        model=model,
        engine_dir=None if missing is not None else engine_dir,
        baselines=baseline or None,
        backend=backend,
        parts=parts,
        service=service,
        cuda_graphs=cuda_graphs,
        device=device,
        limits=Limits(budget_s=budget),
        command=output.settings.command,
    )
    if old is not None:
        comparing.check_comparable(old, sizes, parts, measuring.paths_of(settings), service=service)
    with output.show_progress("bench") as on_event:
        result = measuring.bench(settings, out=out, on_event=on_event)
    written = write_tables(result, out)
    data: dict[str, object] = result.to_dict()
    changes = None if old is None else comparing.compare(old, result, margin)
    shown = [screen(Report(result))]
    if changes is not None:
        data["comparison"] = changes.to_dict()
        shown.append(comparison_table(changes))
    output.emit(data, lambda _: Group(*shown))
    for path in written:
        output.tell(f"wrote {path}")
    if changes is not None:
        output.tell(changes.summary, style=None if changes.ok else "bold red")
    return 0 if changes is None or changes.ok else 1


def screen(report: Report) -> RenderableType:
    """All tables of a result and the notes that belong to them, to be printed at once."""
    absent = dict(pair for part in report.parts for pair in part.absent)
    return Group(
        line(report.title, "bold"),
        line(report.subtitle),
        *(line(remark, "yellow") for remark in report.remarks),
        f"Median; behind it the speed-up over {REFERENCE}, the fastest in bold. {report.spread}",
        *(_table(part.latencies, part.latencies.title) for part in report.parts),
        *(_table(shown, f"{shown.title}, ms") for shown in report.service),
        "",
        *(line(f"{path} was not measured: {why}", "dim") for path, why in absent.items()),
        *(line(f"[{number}] {note}", "dim") for number, note in enumerate(report.notes, 1)),
    )


def comparison_table(comparison: comparing.Changes) -> RenderableType:
    """Every latency of a comparison; what left the margin is named, and coloured."""
    from qvae_trt.report.templates import ms

    rows = []
    for change in comparison.changes:
        direction = comparison.direction(change)
        style = {"worse": "bold red", "better": "green"}.get(direction, "")
        medians = (ms(change.old_ms), ms(change.new_ms))
        marked = (line(change.reason, style), Text(direction, style=style))
        rows.append((change.what, str(change.resolution), line(change.path), *medians, *marked))
    return Group(
        "",
        Table(
            ("what", "size", "path", "old ms", "new ms", "change", ""),
            rows,
            title=f"New against old, margin {comparison.margin:.0%}",
            wraps=("change",),
        ),
        *map(line, comparison.notes),
    )


def _table(shown: Shown, title: str) -> RenderableType:
    from qvae_trt.report.templates import times

    rows = [[_entry(entry) for entry in row] for row in shown.entries]
    if shown.means:
        sizes = max(mean[1] for mean in shown.means if mean is not None)
        told = "mean" if sizes == len(rows) else f"mean of {sizes}"
        rows.append([Text(told), *(Text("" if m is None else times(m[0])) for m in shown.means)])
    return Group("", Table(shown.head, rows, title=title, wraps=("",)))


def _entry(entry: Entry) -> Text:
    from qvae_trt.report.templates import times

    shown = line(entry.text, "bold" if entry.best else "")
    if entry.ratio is not None:
        shown.append(f" {times(entry.ratio)}", style=_shade(entry.ratio))
    if entry.note:
        shown.append(f" [{entry.note}]", style="dim")
    return shown


def _shade(ratio: float) -> str:
    if ratio < 0.98:
        return "red"
    return "bold green" if ratio >= 2 else "green" if ratio > 1.02 else "yellow"


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
        loaded = [comparing.merge(loaded)]
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
