"""`qvae build`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import stacked, table
from qvae_trt.cli.estimate import measured_like
from qvae_trt.cli.events import builds
from qvae_trt.cli.options import (
    ENGINE_DIR,
    MODEL,
    BackendOption,
    EngineDirOption,
    JsonOption,
    ModelOption,
    PartOption,
    PrecisionOption,
    ProfilesOption,
    ResolutionsOption,
    TimingCacheOption,
    VerboseOption,
    need,
    parse_parts,
    parse_resolutions,
    resolve_home,
)
from qvae_trt.kinds import KINDS, QWEN_IMAGE, Kind
from qvae_trt.profiles import Resolution, load_profiles, load_static_sizes, parse_aspect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qvae_trt.build import Job, JobResult
    from qvae_trt.cli.estimate import Measured


def _tune_file(text: str | None) -> str | None:
    """With its home resolved, as `resolve_home` does for options that are paths alone."""
    return str(resolve_home(Path(text))) if text is not None and text.startswith("~") else text


def build(
    mode: Annotated[
        Literal["static", "profiles"],
        typer.Option(
            "--mode", help="static: one engine pair per size; profiles: one pair for all sizes."
        ),
    ],
    aspect: Annotated[
        list[str] | None,
        typer.Option(
            "--aspect",
            metavar="W:H",
            autocompletion=lambda: list(load_static_sizes()),
            help="A listed aspect ratio, such as 16:9; can be repeated.",
        ),
    ] = None,
    resolution: ResolutionsOption = None,
    profiles_file: ProfilesOption = None,
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "fp16",
    part: PartOption = "both",
    engine_dir: EngineDirOption = ENGINE_DIR,
    level: Annotated[
        int | None,
        typer.Option("--level", min=0, max=5, help="TensorRT's builder optimization level."),
    ] = None,
    timing_cache: TimingCacheOption = None,
    tune: Annotated[
        str | None,
        typer.Option(
            "--tune",
            metavar="FILE|none",
            callback=_tune_file,
            help="The file that qvae tune wrote. [default: tune.json in --engine-dir, if it fits]",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also rebuild engines that are up to date.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be built; build nothing.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Build engines; up-to-date ones are kept."""
    _check_sizes(mode, aspect, resolution)
    need(
        mode == "profiles" or profiles_file is None,
        "--profiles was given with --mode static: expected --mode profiles",
    )
    ranges = None if profiles_file is None else load_profiles(profiles_file)

    from qvae_trt import backends
    from qvae_trt import build as building
    from qvae_trt.model import find_kind
    from qvae_trt.tune import follow

    chosen = backends.get(backend)
    suffix = chosen.suffix
    parts = parse_parts(part)
    tuned = follow(tune, engine_dir=engine_dir, backend=chosen, precision=precision, parts=parts)
    for line in tuned.lines:
        output.tell(line)
    kind = find_kind(model)
    if mode == "static":
        sizes = _sizes(kind, aspect, resolution)
        jobs = building.plan_static(engine_dir, sizes, parts, suffix)
    else:
        jobs = building.plan_profiles(engine_dir, ranges or kind.profiles, parts, suffix)
    with builds() as on_event:
        results = building.build(
            jobs,
            model=model,
            backend=backend,
            precision=precision,
            level=level,
            timing_cache=timing_cache,
            lowerings=tuned.lowerings,
            levels=tuned.levels,
            force=force,
            dry_run=dry_run,
            command=output.settings.command,
            on_event=on_event,
        )
    # What was measured is the full architecture of Qwen-Image.
    full = model != "bundled:tiny" and kind == QWEN_IMAGE
    known = _estimates(results, chosen.name) if full else {}
    data = {
        "engines": [
            r.to_dict() | ({"estimate": asdict(known[r.job])} if r.job in known else {})
            for r in results
        ],
        "tune": tuned.to_dict(),
    }
    output.emit(data, lambda: _table(results, known))
    for result in results:
        if result.error is not None and result.error.fix is not None:
            output.tell(f"{result.job.title}: {result.error.fix}")
    return 1 if any(r.status == "failed" for r in results) else 0


def _estimates(results: list[JobResult], flavour: str) -> dict[Job, Measured]:
    """For what is planned and was never built here."""
    found = {
        r.job: measured_like(r.job, flavour)
        for r in results
        if r.status == "planned" and r.seconds is None
    }
    return {job: row for job, row in found.items() if row is not None}


def _table(results: list[JobResult], known: dict[Job, Measured]) -> RenderableType:
    counts = Counter(r.status for r in results)
    rows = []
    for r in results:
        size, took, mark = r.engine_bytes, r.seconds, ""
        if r.job in known:
            size, took, mark = known[r.job].bytes, known[r.job].seconds, "~"
        rows.append(
            (
                r.status,
                r.job.title,
                str(r.job.path),
                "–" if size is None else f"{mark}{size / 2**20:.1f}",
                "–" if took is None else f"{mark}{took:.1f}",
                r.reason,
            )
        )
    return stacked(
        table(
            ("", "engine", "file", "MiB", "s", "why"),
            rows,
            title=", ".join(f"{count} {status}" for status, count in counts.items()),
            spare=("file",),
        ),
        *_words(known),
    )


def _words(known: dict[Job, Measured]) -> list[str]:
    if not known:
        return []
    places = ", ".join(sorted({row.place for row in known.values()}))
    minutes = sum(row.seconds for row in known.values()) / 60
    mib = sum(row.bytes for row in known.values()) / 2**20
    return [
        f"~ estimated from the nearest engine measured on {places}; other machines differ.",
        f"~ {minutes:.0f} min and {mib:.0f} MiB in all.",
    ]


def _check_sizes(mode: str, aspects: list[str] | None, resolutions: list[str] | None) -> None:
    """UsageError, before anything is loaded, for what no kind of VAE has."""
    need(
        mode == "static" or not (aspects or resolutions),
        "--aspect and --resolution were given with --mode profiles: expected --mode static",
        fix="other profiles: --profiles FILE",
    )
    known = {aspect: size for kind in KINDS for aspect, size in kind.static_sizes.items()}
    for name in aspects or ():
        parse_aspect(name, sizes=known)
    parse_resolutions(resolutions)


def _sizes(
    kind: Kind, aspects: list[str] | None, resolutions: list[str] | None
) -> tuple[Resolution, ...]:
    known = kind.static_sizes
    named = tuple(parse_aspect(name, sizes=known) for name in aspects or ())
    asked = dict.fromkeys((*named, *parse_resolutions(resolutions)))
    return tuple(asked) or tuple(known.values())
