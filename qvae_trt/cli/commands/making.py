"""What makes engines: `qvae export`, `qvae build`, and `qvae tune`, which finds how."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import MIB, counted, figure, records
from qvae_trt.commands import complete
from qvae_trt.json_rows import write
from qvae_trt.kinds import KINDS, QWEN_IMAGE, Kind
from qvae_trt.profiles import Precision, Resolution, load_profiles, load_static_sizes, parse_aspect
from qvae_trt.progress import Event, stages

if TYPE_CHECKING:
    from qvae_trt.build import Job, JobResult


def export(
    out: Path = Option(
        ..., metavar="DIR", help="The folder for vae_encoder.onnx and vae_decoder.onnx."
    ),
    model: str = options.model_option(),
    part: options.PartChoice = options.PART_OPTION,
    precision: Precision = options.PRECISION_OPTION,
    graph: Literal["image", "video"] = Option(
        "image", help="image: the exact 2D graph of one frame; video: Conv3d, as diffusers has it."
    ),
    dynamic: bool | None = Option(
        None, "--dynamic/--static", help="Any size, or the one of --resolution. [default: dynamic]"
    ),
    resolution: Resolution | None = options.size_option(
        None, "The size of a static graph; needed with --static."
    ),
) -> None:
    """Export the VAE to ONNX."""
    from qvae_trt.files.writing import check_writable

    _check_size(dynamic, resolution)
    targets = {name: out / f"vae_{name}.onnx" for name in options.parse_parts(part)}
    for path in targets.values():
        check_writable(path)

    from qvae_trt.export import export_onnx
    from qvae_trt.model import load_model

    loaded = load_model(model)
    how: dict[str, Any] = {"precision": precision, "graph": graph, "resolution": resolution}
    files = []
    with output.show_progress("export") as on_event:
        for index, (name, path) in enumerate(targets.items()):
            event = partial(Event, index=index, count=len(targets))
            on_event(event(kind="start", text=name))
            progress = stages(on_event, partial(event, item=name))
            files.append(export_onnx(loaded, name, path, progress=progress, **how))
    data = {
        "model": model,
        "precision": precision,
        "graph": graph,
        "files": [{**write(file), "bytes": file.path.stat().st_size} for file in files],
    }
    columns: dict[str, Any] = {"file": "path", "MiB": figure("bytes", unit=MIB), "input": _input}
    output.emit(data, lambda d: records(d["files"], columns))


def _check_size(dynamic: bool | None, resolution: Resolution | None) -> None:
    options.need(
        not (dynamic is True and resolution is not None),
        "--dynamic and --resolution were both given: a dynamic graph has no size",
        fix="leave one of them out",
    )
    options.need(
        not (dynamic is False and resolution is None),
        "--static was given without --resolution: expected the size of the graph",
        fix="for example: --static --resolution 1664x928",
    )


def _input(file: Any) -> str:
    return "x".join("?" if side < 0 else str(side) for side in file["input"]["shape"])


def _check_aspects(names: list[str] | None) -> list[str] | None:
    """Before anything is loaded: UsageError for an aspect ratio that no kind of VAE has."""
    known = {aspect: size for kind in KINDS for aspect, size in kind.static_sizes.items()}
    for name in names or ():
        parse_aspect(name, sizes=known)
    return names


def build(
    mode: Literal["static", "profiles"] = Option(
        ..., help="static: one engine pair per size; profiles: one pair for all sizes."
    ),
    aspect: list[str] | None = Option(
        None,
        metavar="W:H",
        callback=_check_aspects,
        autocompletion=lambda: list(load_static_sizes()),
        help="A listed aspect ratio, such as 16:9; can be repeated. [default: every one, where "
        "no --resolution is given]",
    ),
    resolution: list[Resolution] | None = options.size_option(
        None, "A size, such as 1664x928; can be repeated. [default: every listed aspect ratio]"
    ),
    profiles_file: Path | None = options.PROFILES_OPTION,
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    precision: Precision = options.PRECISION_OPTION,
    part: options.PartChoice = options.PART_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    level: int | None = Option(
        None,
        min=0,
        max=5,
        metavar="0-5",
        help="TensorRT's builder optimization level. [default: as tuned, else TensorRT's own; 2 "
        "for ranges with TensorRT 8]",
    ),
    timing_cache: Path | None = options.TIMING_CACHE_OPTION,
    tune: str | None = Option(
        None,
        metavar="FILE|none",
        callback=lambda text: text and str(options.resolve_home(Path(text))),
        help="The file that qvae tune wrote. [default: tune.json in --engine-dir, if it fits]",
    ),
    force: bool = Option(False, "--force", help="Also rebuild engines that are up to date."),
    dry_run: bool = Option(False, "--dry-run", help="Show what would be built; build nothing."),
) -> int:
    """Build engines; up-to-date ones are kept."""
    options.need(
        mode == "static" or not (aspect or resolution),
        "--aspect and --resolution were given with --mode profiles: expected --mode static",
        fix="other profiles: --profiles FILE",
    )
    options.need(
        mode == "profiles" or profiles_file is None,
        "--profiles was given with --mode static: expected --mode profiles",
    )
    ranges = None if profiles_file is None else load_profiles(profiles_file)

    from qvae_trt import backends
    from qvae_trt import build as building
    from qvae_trt.model import find_kind
    from qvae_trt.tune.record import follow

    chosen = backends.get(backend)
    suffix = chosen.suffix
    parts = options.parse_parts(part)
    tuned = follow(tune, engine_dir=engine_dir, backend=chosen, precision=precision, parts=parts)
    for line in tuned.lines:
        output.tell(line)
    kind = find_kind(model)
    if mode == "static":
        sizes = _sizes(kind, aspect, resolution)
        jobs = building.plan_static(engine_dir, sizes, parts, suffix)
    else:
        jobs = building.plan_profiles(engine_dir, ranges or kind.profiles, parts, suffix)
    line = output.settings.command
    command = complete(line, model=model, backend=backend, engine_dir=engine_dir)
    settings = building.BuildSettings(
        model=model,
        backend=backend,
        precision=precision,
        level=level,
        timing_cache=timing_cache,
        variants=tuned.variants,
        force=force,
        dry_run=dry_run,
        command=command,
    )
    with output.show_progress() as on_event:
        results = building.build(jobs, settings, on_event=on_event)
    # What was measured is the full architecture of Qwen-Image.
    full = model != "bundled:tiny" and kind == QWEN_IMAGE
    output.emit(
        {"engines": plain(results, chosen.name if full else None), "tune": tuned.to_dict()}, draw
    )
    for result in results:
        if result.error is not None and result.error.fix is not None:
            output.tell(f"{result.job.title}: {result.error.fix}")
    return 1 if any(r.status == "failed" for r in results) else 0


def plain(results: Sequence[JobResult], flavour: str | None) -> list[dict[str, Any]]:
    """Each engine as `--json` prints it; a planned one that was never built has an estimate, if any
    engine of its flavour was measured.
    """
    engines = [result.to_dict() for result in results]
    for row, result in zip(engines, results, strict=True):
        if flavour is not None and result.status == "planned" and result.seconds is None:
            like = measured_like(result.job, flavour)
            row |= {} if like is None else {"estimate": like}
    return engines


def measured_like(job: Job, flavour: str) -> dict[str, Any] | None:
    """The measured engine of the same flavour, part and mode whose size is nearest; None if there
    is none. There is no other GPU than those measured, so whoever shows an estimate names its
    machine.
    """
    wanted = (flavour, job.part, job.mode)
    alike = [row for row in measured() if (row["flavour"], row["part"], row["mode"]) == wanted]
    if job.resolution is None:
        return next(iter(alike), None)
    pixels = job.resolution.pixels
    return min(
        alike, key=lambda row: abs(Resolution.parse(row["size"]).pixels - pixels), default=None
    )


@lru_cache(maxsize=1)
def measured() -> list[dict[str, Any]]:
    """Engines of the full VAE that were built once, from the sidecars under benchmarks/; `size` is
    None for one with profiles.
    """
    return json.loads(files("qvae_trt").joinpath("data/builds.json").read_text("utf-8"))["engines"]


def draw(data: dict[str, Any]) -> RenderableType:
    def marked(name: str, unit: int = 1) -> Callable[[Any], str | None]:
        """A figure of an engine, with a mark where it is an estimate."""
        shown = figure(name, unit=unit)
        return lambda engine: (
            f"~{shown(engine['estimate'])}" if "estimate" in engine else shown(engine)
        )

    engines = data["engines"]
    columns: dict[str, Any] = {"": "status", "engine": "title", "file": "engine"}
    columns |= {"MiB": marked("bytes", MIB), "s": marked("seconds"), "why": "reason"}
    title = counted(engine["status"] for engine in engines)
    words = []
    if estimates := [engine["estimate"] for engine in engines if "estimate" in engine]:
        places = {f"{e['gpu']} with {e['flavour']} {e['flavour_version']}" for e in estimates}
        minutes = sum(e["seconds"] for e in estimates) / 60
        size = sum(e["bytes"] for e in estimates) / MIB
        where = ", ".join(sorted(places))
        words = [
            f"~ estimated from the nearest engine measured on {where}; other machines differ.",
            f"~ {minutes:.0f} min and {size:.0f} MiB in all.",
        ]
    elif any(engine["status"] == "planned" and engine["seconds"] is None for engine in engines):
        words = ["No estimate: no engine of this backend and model was measured."]
    return Group(records(engines, columns, title=title, spare=("file",)), *words)


def _sizes(
    kind: Kind, aspects: list[str] | None, resolutions: list[Resolution] | None
) -> tuple[Resolution, ...]:
    known = kind.static_sizes
    named = tuple(parse_aspect(name, sizes=known) for name in aspects or ())
    asked = dict.fromkeys((*named, *(resolutions or ())))
    return tuple(asked) or tuple(known.values())


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
    out: Path | None = Option(
        None, metavar="FILE", help="What was found. [default: tune.json in --engine-dir]"
    ),
    timing_cache: Path | None = options.TIMING_CACHE_OPTION,
    budget: float = Option(2.0, metavar="SECONDS", help="How long to time one variant."),
    force: bool = Option(False, "--force", help="Measure again the variants that are in the file."),
) -> int:
    """Find the fastest way to build engines on this machine.

    Builds the few variants of graph and builder level that matter, one after the other, in a
    temporary folder. Compares each with PyTorch fp32, times it, and writes the fastest variant
    within the parity bounds to a file that build uses. A run that was stopped continues where it
    was. Speed hardly depends on the weights: those of the default need no download.
    """
    from qvae_trt.tune import run as running
    from qvae_trt.tune.record import FILE_NAME, built_otherwise

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
    with output.show_progress() as on_event:
        result = running.tune(settings, on_event=on_event)
    stale = list(map(str, built_otherwise(result.file, engine_dir))) if out is None else []
    output.emit({**result.to_dict(), "stale": stale}, _draw_variants)
    for name in result.parts:
        if result.chosen(name) is None:
            output.tell(
                f"{name}: no variant was built, ran and stayed within the bounds", style="bold red"
            )
    output.tell(f"wrote {result.path}")
    if stale:
        output.tell(f"built otherwise, so qvae build builds them again: {', '.join(stale)}")
    return 0 if result.ok else 1


def _draw_variants(data: dict[str, Any]) -> RenderableType:
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
