"""`qvae tune`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.options import (
    ENGINE_DIR,
    BackendOption,
    EngineDirOption,
    JsonOption,
    PartOption,
    PrecisionOption,
    TimingCacheOption,
    VerboseOption,
    parse_parts,
)
from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import RenderableType

    from qvae_trt.tune import Measurement, TuneEvent, TuneResult, Variant


def tune(
    resolution: Annotated[
        str, typer.Option("--resolution", metavar="WxH", help="The size to measure at.")
    ],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            help="As for build. Speed does not depend on the weights; the default needs no "
            "download.",
        ),
    ] = "random:full",
    backend: BackendOption = "auto",
    precision: PrecisionOption = "fp16",
    part: PartOption = "both",
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variants",
            metavar="CHANGES",
            help="Only the default and this one, such as attention=exp,attention_chunks=4,level=2; "
            "can be repeated. [default: the few that matter for the backend]",
        ),
    ] = None,
    engine_dir: EngineDirOption = ENGINE_DIR,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="[default: tune.json in --engine-dir]"),
    ] = None,
    timing_cache: TimingCacheOption = None,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", help="How long to time one variant."),
    ] = 2.0,
    force: Annotated[
        bool, typer.Option("--force", help="Measure again the variants that are in the file.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Find the fastest way to build engines on this machine.

    Builds the few variants of graph and builder level that matter, one after the other, in a
    temporary folder. Compares each with PyTorch fp32, times it, and writes the fastest variant
    within the parity bounds to a file that build uses. A run that was stopped continues where it
    was.
    """
    size = Resolution.parse(resolution)

    from dataclasses import replace

    from qvae_trt import tune as tuning

    with _progress() as on_event:
        result = tuning.tune(
            size,
            out=engine_dir / tuning.FILE_NAME if out is None else out,
            model=model,
            backend=backend,
            precision=precision,
            parts=parse_parts(part),
            variants=tuple(variants or ()),
            timing_cache=timing_cache,
            limits=replace(tuning.LIMITS, budget_s=budget),
            force=force,
            command=output.settings.command,
            on_event=on_event,
        )
    output.emit(result.to_dict(), lambda: _table(result))
    for name in result.parts:
        if result.chosen(name) is None:
            output.tell(
                f"{name}: no variant was built, ran and stayed within the bounds", style="bold red"
            )
    output.tell(f"wrote {result.path}")
    return 0 if result.ok else 1


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[TuneEvent], None]]:
    """A bar for all variants and the stage at work; without a terminal a line each."""
    with output.progress() as bars:
        every = None if bars is None else bars.add_task("variants", total=None)
        stage = None if bars is None else bars.add_task("", total=None)

        def show(event: TuneEvent) -> None:
            if bars is not None and every is not None and stage is not None:
                if event.total:
                    bars.update(every, completed=event.done, total=event.total)
                words = f"{event.part} {event.variant}: {event.text}"
                bars.update(stage, description=words if event.kind == "stage" else "")
            line = _line(event, verbose=output.settings.verbose)
            if line is not None:
                output.tell(line, on=None if bars is None else bars.console)

        yield show


def _line(event: TuneEvent, *, verbose: bool) -> str | None:
    if event.kind == "note":
        return event.text
    if event.kind == "stage":
        return f"{event.part} {event.variant}: {event.text}" if verbose else None
    if event.measurement is None:
        return None
    found = event.measurement
    took = "" if found.timing is None else f" {found.timing.median_ms:.2f} ms"
    why = f": {found.reason}" if found.reason else ""
    before = f" ({event.text})" if event.text else ""
    head = f"{event.done}/{event.total} {event.part} {event.variant}"
    return f"{head}: {found.status}{took}{before}{why}"


def _table(result: TuneResult) -> RenderableType:
    default_ms = {
        row.subject.part: row.timing.median_ms
        for row in result.rows
        if row.variant == result.default and row.timing is not None
    }
    rows = []
    for row in sorted(result.rows, key=_order):
        took, part = row.timing, row.subject.part
        base = default_ms.get(part)
        rows.append(
            (
                "chosen" if row == result.chosen(part) else row.status,
                part,
                _name(row, result.default),
                "–" if took is None else f"{took.median_ms:.2f}",
                "–" if took is None else f"{took.p90_ms:.2f}",
                "–" if took is None or base is None else f"{base / took.median_ms:.2f}",
                "–"
                if row.parity is None or row.parity.psnr_db is None
                else f"{row.parity.psnr_db:.1f}",
                _mib(row.memory_bytes),
                _mib(row.engine_bytes),
                "–" if row.build_seconds is None else f"{row.build_seconds:.1f}",
                row.reason,
            )
        )
    headers = ("", "part", "variant", "ms", "p90", "speed-up", "PSNR", "run MiB", "MiB", "build s")
    key = result.file.key
    title = f"{key.flavour} {key.flavour_version} on {key.gpu}, {key.precision}, default: "
    return table(
        (*headers, "why not"),
        rows,
        title=f"{title}{result.default}",
        spare=("run MiB", "p90", "MiB", "build s", "PSNR"),
        wraps=("variant", "why not"),
    )


def _order(row: Measurement) -> tuple[str, bool, float]:
    median_ms = 0.0 if row.timing is None else row.timing.median_ms
    return row.subject.part, row.status != "ok", median_ms


def _name(row: Measurement, default: Variant) -> str:
    return row.variant.against(default).replace(",", ", ")


def _mib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"
