"""`qvae tune`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import MIB, figure, records
from qvae_trt.cli.events import show_progress
from qvae_trt.profiles import Precision, Resolution


def tune(
    resolution: Resolution = options.size_option(..., "The size to measure at."),
    model: str = options.model_option("random:full"),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    precision: Precision = options.PRECISION_OPTION,
    part: options.PartChoice = options.PART_OPTION,
    variants: list[str] | None = Option(
        None,
        metavar="CHANGES",
        help="Only the default and this one, such as attention=exp,attention_chunks=4,level=2; "
        "can be repeated. [default: the few that matter for the backend]",
    ),
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    out: Path | None = Option(None, metavar="FILE", help="[default: tune.json in --engine-dir]"),
    timing_cache: Path | None = options.TIMING_CACHE_OPTION,
    budget: float = Option(2.0, metavar="SECONDS", help="How long to time one variant."),
    force: bool = Option(False, "--force", help="Measure again the variants that are in the file."),
) -> int:
    """Find the fastest way to build engines on this machine.

    Builds the few variants of graph and builder level that matter, one after the other, in a
    temporary folder. Compares each with PyTorch fp32, times it, and writes the fastest variant
    within the parity bounds to a file that build uses. A run that was stopped continues where it
    was. Speed does not depend on the weights: those of the default need no download.
    """
    from qvae_trt.tune import run as running
    from qvae_trt.tune.follow import FILE_NAME, built_otherwise

    settings = running.TuneSettings(
        resolution=resolution,
        out=engine_dir / FILE_NAME if out is None else out,
        model=model,
        backend=backend,
        precision=precision,
        parts=options.parse_parts(part),
        variants=tuple(variants or ()),
        timing_cache=timing_cache,
        limits=replace(running.LIMITS, budget_s=budget),
        force=force,
        command=output.settings.command,
    )
    with show_progress() as on_event:
        result = running.tune(settings, on_event=on_event)
    stale = list(map(str, built_otherwise(result.file, engine_dir))) if out is None else []
    output.emit({**result.to_dict(), "stale": stale}, _draw)
    for name in result.parts:
        if result.chosen(name) is None:
            output.tell(
                f"{name}: no variant was built, ran and stayed within the bounds", style="bold red"
            )
    output.tell(f"wrote {result.path}")
    if stale:
        output.tell(f"built otherwise, so qvae build builds them again: {', '.join(stale)}")
    return 0 if result.ok else 1


def _draw(data: dict[str, Any]) -> RenderableType:
    default_ms = {
        row["part"]: row["timing"]["median_ms"]
        for row in data["variants"]
        if row["variant"] == "default" and row["timing"] is not None
    }

    def speedup(row: Any) -> str | None:
        base, timing = default_ms.get(row["part"]), row["timing"]
        return None if base is None or timing is None else f"{base / timing['median_ms']:.2f}"

    key = data["key"]
    title = f"{key['flavour']} {key['flavour_version']} on {key['gpu']}, {key['precision']}"
    columns: dict[str, Any] = {
        "": lambda row: "chosen" if row["chosen"] else row["status"],
        "part": "part",
        "variant": lambda row: row["variant"].replace(",", ", "),
        "ms": figure("timing.median_ms", ".2f"),
        "p90": figure("timing.p90_ms", ".2f"),
        "speed-up": speedup,
        "PSNR": figure("parity.psnr_db"),
        "run MiB": figure("memory_bytes", unit=MIB),
        "MiB": figure("engine_bytes", unit=MIB),
        "build s": figure("build_seconds"),
        "why not": "reason",
    }
    return records(
        sorted(data["variants"], key=_order),
        columns,
        title=f"{title}, default: {data['default']}",
        spare=("run MiB", "p90", "MiB", "build s", "PSNR"),
        wraps=("variant", "why not"),
    )


def _order(row: Any) -> tuple[str, bool, float]:
    return row["part"], row["status"] != "ok", (row["timing"] or {}).get("median_ms", 0.0)
