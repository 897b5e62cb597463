"""`qvae profiles [list|match WxH]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.options import (
    ENGINE_DIR,
    BackendChoice,
    BackendOption,
    JsonOption,
    ProfilesOption,
    VerboseOption,
    need,
    no_folder,
)
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import (
    PARTS,
    Part,
    Resolution,
    build_command,
    choose,
    engine_path,
    load_profiles,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from qvae_trt.kinds import Kind
    from qvae_trt.profiles import Choice

KindOption = Annotated[
    str | None,
    typer.Option("--model", help="Whose sizes: as --model of build. [default: Qwen-Image's]"),
]


def profiles(
    ctx: typer.Context, as_json: JsonOption = False, verbose: VerboseOption = False
) -> None:
    """List the sizes and profiles, or match one."""
    if ctx.invoked_subcommand is None:
        list_()


def list_(
    profiles_file: ProfilesOption = None,
    model: KindOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the static sizes and the profiles, in the engine's order."""
    kind = _kind(model)
    sizes = kind.static_sizes
    ranges = kind.profiles if profiles_file is None else load_profiles(profiles_file)
    data = {
        "static": [{"aspect": aspect, "size": str(size)} for aspect, size in sizes.items()],
        "profiles": [
            {"index": index, "min": str(p.min), "opt": str(p.opt), "max": str(p.max)}
            for index, p in enumerate(ranges)
        ],
    }

    def draw() -> RenderableType:
        from rich.console import Group

        return Group(
            table(
                ("aspect", "size"),
                [(aspect, str(size)) for aspect, size in sizes.items()],
                title="static: one engine pair each",
            ),
            "",
            table(
                ("profile", "min", "opt", "max"),
                [(str(i), str(p.min), str(p.opt), str(p.max)) for i, p in enumerate(ranges)],
                title="profiles: one engine pair for all of them",
            ),
        )

    output.emit(data, draw)


def match(
    size: Annotated[str, typer.Argument(metavar="WxH", help="A size, such as 1600x1200.")],
    engine_dir: Annotated[
        Path | None,
        typer.Option(
            "--engine-dir",
            help="Match against the engines here. [default: engines/ if it is there, else as if "
            "every engine were built]",
        ),
    ] = None,
    profiles_file: ProfilesOption = None,
    model: KindOption = None,
    backend: BackendOption = "auto",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show which engine serves a size, and why the others do not."""
    resolution = Resolution.parse(size)
    kind = _kind(model)
    kind.latents_of(resolution)
    folder = engine_dir or (ENGINE_DIR if ENGINE_DIR.is_dir() else None)
    need(
        folder is None or profiles_file is None,
        "--profiles was given with a folder of engines, which have profiles of their own",
        fix="leave --profiles out",
    )
    if folder is None:
        choices: dict[Part, Choice] = dict.fromkeys(
            PARTS, _as_if_built(resolution, kind, profiles_file)
        )
    else:
        choices = _from_folder(resolution, folder, backend)
    where = "as if every engine were built" if folder is None else f"with the engines in {folder}"
    # One list where both halves of the VAE get the same, which is the rule.
    same = choices["encoder"] == choices["decoder"]
    shown = [("", choices["decoder"])] if same else list(choices.items())
    output.emit(
        {
            "size": str(resolution),
            "engine_dir": None if folder is None else str(folder),
            **{part: _plain(choice) for part, choice in choices.items()},
        },
        lambda: table(
            ("", "", "engine", "why"),
            [
                (part, "ok" if c.accepted else "", c.name, c.reason)
                for part, choice in shown
                for c in choice.candidates
            ],
            title=f"{resolution}, {where}",
        ),
    )
    # Of an engine that is there and refused, the reason says what helps.
    missing = all("no file" in choice.candidates[0].reason for choice in choices.values())
    if folder is not None and missing and choices["decoder"].engine == "pytorch":
        command = build_command(
            "static",
            resolution,
            backend=backend,
            engine_dir=None if folder == ENGINE_DIR else folder,
        )
        output.tell(f"to build one: {command}")


def _kind(model: str | None) -> Kind:
    if model is None:
        return QWEN_IMAGE

    from qvae_trt.model import find_kind

    return find_kind(model)


def _as_if_built(size: Resolution, kind: Kind, profiles_file: Path | None) -> Choice:
    sizes = kind.static_sizes.values()
    built = {r: engine_path(ENGINE_DIR, "decoder", "static", "", r) for r in sizes}
    ranges = kind.profiles if profiles_file is None else load_profiles(profiles_file)
    return choose(size, static=built, profiles=ranges)


def _from_folder(size: Resolution, folder: Path, backend: BackendChoice) -> dict[Part, Choice]:
    missing = no_folder(folder, size, backend=backend)
    if missing is not None:
        raise missing

    from qvae_trt.runtime.selection import Engines, roots

    engines = Engines(roots(folder), backend=backend, weights_sha256=None)
    return {part: engines.checked_choice(part, size) for part in PARTS}


def _plain(choice: Choice) -> dict[str, object]:
    return {
        "engine": choice.engine,
        "profile_index": choice.profile_index,
        "path": None if choice.path is None else str(choice.path),
        "candidates": [
            {
                "name": c.name,
                "accepted": c.accepted,
                "reason": c.reason,
                "profile_index": c.profile_index,
            }
            for c in choice.candidates
        ],
    }
