"""`qvae build`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from qvae_trt.cli.events import step_bar as builds
from qvae_trt.cli.options import (
    ENGINE_DIR,
    MODEL,
    BackendOption,
    EngineDirOption,
    JsonOption,
    ModelOption,
    PartOption,
    PrecisionOption,
    ResolutionsOption,
    VerboseOption,
    need,
    parse_parts,
    parse_resolutions,
)
from qvae_trt.profiles import Resolution, load_profiles, load_static_sizes, parse_aspect


def build(
    mode: Annotated[
        Literal["static", "profiles"],
        typer.Option(
            "--mode", help="static: one engine pair a size; profiles: one pair for all sizes."
        ),
    ],
    aspect: Annotated[
        list[str] | None,
        typer.Option(
            "--aspect", metavar="W:H", help="A listed aspect ratio, as 16:9; may be given again."
        ),
    ] = None,
    resolution: ResolutionsOption = None,
    profiles_file: Annotated[
        Path | None, typer.Option("--profiles", help="A TOML file of profiles. [default: the nine]")
    ] = None,
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    precision: PrecisionOption = "fp16",
    part: PartOption = "both",
    engine_dir: EngineDirOption = ENGINE_DIR,
    level: Annotated[
        int | None,
        typer.Option("--level", min=0, max=5, help="TensorRT's builder optimization level."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", help="Where to keep kernel timings between builds."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build engines that are up to date, too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be built; build nothing.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> int:
    """Build engines; what is up to date is kept."""
    sizes = _sizes(mode, aspect, resolution)
    need(
        mode == "profiles" or profiles_file is None,
        "--profiles was given with --mode static: expected --mode profiles",
    )
    ranges = load_profiles(profiles_file)

    from qvae_trt import backends
    from qvae_trt import build as building

    suffix = backends.get(backend).suffix
    parts = parse_parts(part)
    if mode == "static":
        jobs = building.plan_static(engine_dir, sizes, parts, suffix)
    else:
        jobs = building.plan_profiles(engine_dir, ranges, parts, suffix)
    with builds() as on_event:
        results = building.build(
            jobs,
            model=model,
            backend=backend,
            precision=precision,
            level=level,
            timing_cache=timing_cache,
            force=force,
            command=shlex.join(["qvae", *sys.argv[1:]]),
            on_event=on_event,
        )
    return _show(results)


def _sizes(
    mode: str, aspects: list[str] | None, resolutions: list[str] | None
) -> tuple[Resolution, ...]:
    need(
        mode == "static" or not (aspects or resolutions),
        "--aspect and --resolution were given with --mode profiles: expected --mode static",
        fix="other profiles: --profiles FILE",
    )
    known = load_static_sizes()
    named = tuple(parse_aspect(name, sizes=known) for name in aspects or ())
    asked = dict.fromkeys((*named, *parse_resolutions(resolutions)))
    return tuple(asked) or tuple(known.values())
