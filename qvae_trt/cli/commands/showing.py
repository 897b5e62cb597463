"""What there is: `qvae profiles [list|match WxH]`, `qvae inspect ENGINE`, `qvae doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text
from typer import Argument, Context, Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import records, tree
from qvae_trt.commands import build_command, command_line
from qvae_trt.errors import BackendError, EngineError
from qvae_trt.json_rows import write
from qvae_trt.kinds import QWEN_IMAGE, Kind
from qvae_trt.profiles import PARTS, Choice, Part, Refusal, Resolution, choose, load_profiles
from qvae_trt.version import __version__


def profiles(ctx: Context) -> None:
    """List the sizes and profiles, or match one."""
    if ctx.invoked_subcommand is None:
        list_(None, os.environ.get("QVAE_MODEL") or options.MODEL)


def list_(
    profiles_file: Path | None = options.PROFILES_OPTION, model: str = options.model_option()
) -> None:
    """List the static sizes and the profiles, in the engine's order."""
    kind = _kind(model)
    sizes = kind.static_sizes
    ranges = kind.profiles if profiles_file is None else load_profiles(profiles_file)
    data = {
        "static": [{"aspect": aspect, "size": str(size)} for aspect, size in sizes.items()],
        "profiles": [{"index": index, **write(profile)} for index, profile in enumerate(ranges)],
    }
    output.emit(data, _draw_list)


def _draw_list(data: dict[str, Any]) -> RenderableType:
    one, all_ = "static: one engine pair each", "profiles: one engine pair for all of them"
    ranges = {"profile": "index", "min": "min", "opt": "opt", "max": "max"}
    return Group(
        records(data["static"], {"aspect": "aspect", "size": "size"}, title=one),
        "",
        records(data["profiles"], ranges, title=all_),
    )


def match(
    size: Resolution = Argument(
        ..., metavar="WxH", parser=Resolution.parse, help="A size, such as 1600x1200."
    ),
    engine_dir: Path | None = Option(
        None,
        envvar="QVAE_ENGINE_DIR",
        metavar="DIR",
        help="Match against the engines here. [default: engines/ if it is there, else as if "
        "every engine were built]",
    ),
    profiles_file: Path | None = options.PROFILES_OPTION,
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
) -> None:
    """Show which engine serves a size, and why the others do not."""
    kind = _kind(model)
    kind.latents_of(size)
    folder = engine_dir or (options.ENGINE_DIR if options.ENGINE_DIR.is_dir() else None)
    options.need(
        folder is None or profiles_file is None,
        "--profiles was given with a folder of engines, which have profiles of their own",
        fix="leave --profiles out",
    )
    if folder is None:
        choices = _as_if_built(size, kind, profiles_file)
    else:
        choices = _from_folder(size, folder, backend, model)
    data: dict[str, Any] = {"size": str(size)}
    data["engine_dir"] = None if folder is None else str(folder)
    data |= {part: _plain(choice) for part, choice in choices.items()}
    output.emit(data, _draw_match)
    # Of an engine that is there and refused, the reason says what helps.
    missing = all(choice.candidates[0].absent for choice in choices.values())
    if folder is not None and missing and choices["decoder"].engine == "folded":
        command = build_command("static", size, model=model, backend=backend, engine_dir=folder)
        output.tell(f"to build one: {command}")


def _kind(model: str) -> Kind:
    if model == options.MODEL:
        return QWEN_IMAGE

    from qvae_trt.model import find_kind

    return find_kind(model)


def _draw_match(data: dict[str, Any]) -> RenderableType:
    folder = data["engine_dir"]
    where = "as if every engine were built" if folder is None else f"with the engines in {folder}"
    # One list where both halves of the VAE get the same, which is the rule.
    same = data["encoder"] == data["decoder"]
    rows = [
        {"part": "" if same else part, **candidate}
        for part in (("decoder",) if same else PARTS)
        for candidate in data[part]["candidates"]
    ]
    columns: dict[str, Any] = {"": "part", " ": lambda row: "ok" if row["accepted"] else ""}
    taken = dict.fromkeys(row["name"] for row in rows if row["accepted"])
    title = f"{data['size']}: {' and '.join(taken)}, {where}"
    return records(rows, columns | {"engine": "name", "why": "reason"}, title=title)


def _as_if_built(size: Resolution, kind: Kind, profiles_file: Path | None) -> dict[Part, Choice]:
    listed = size in kind.static_sizes.values()
    static = None if listed else Refusal(f"no static engine of {size}", absent=True)
    ranges = kind.profiles if profiles_file is None else load_profiles(profiles_file)
    return dict.fromkeys(PARTS, choose(size, static=static, profiles=ranges))


def _from_folder(
    size: Resolution, folder: Path, backend: options.BackendChoice, model: str
) -> dict[Part, Choice]:
    missing = options.no_folder(folder, size, backend=backend, model=model)
    if missing is not None:
        raise missing

    from qvae_trt.runtime.arguments import mode_folders
    from qvae_trt.runtime.engines import Engines

    folders, vae = mode_folders(folder), _kind(model).name
    engines = Engines(folders, backend=backend, weights_sha256=None, vae=vae)
    return {part: engines.checked_choice(part, size) for part in PARTS}


def _plain(choice: Choice) -> dict[str, object]:
    return {
        "engine": choice.engine,
        "profile_index": choice.profile_index,
        "path": None if choice.path is None else str(choice.path),
        "candidates": [
            {name: getattr(c, name) for name in ("name", "accepted", "reason", "profile_index")}
            for c in choice.candidates
        ],
    }


def inspect(
    engine: Path = Argument(..., metavar="ENGINE", help="An engine file, .trt or .onnx."),
) -> None:
    """Show what is in an engine file: key, profiles, layers, memory."""
    from qvae_trt.opening import Wanted, check, open_engine

    engine = _engine(engine)
    anything = Wanted(allow_foreign=True)
    sidecar = check(engine, anything)
    data: dict[str, Any] = {"path": str(engine), "bytes": engine.stat().st_size}
    if sidecar is None:
        output.warn("no sidecar says who built this engine or for what")
    else:
        data["sidecar"] = sidecar.to_dict()
    try:
        opened = open_engine(engine, anything)
    except BackendError as error:
        output.warn(f"not opened, only its sidecar is shown: {error.what}")
    else:
        backend = opened.backend
        head = {"backend": backend.name, "version": backend.version()}
        data["engine"] = head | opened.session.inspect()
        opened.session.close()
    output.emit(data, lambda d: tree(d if output.settings.verbose else _short(d)))


def _short(data: dict[str, Any]) -> dict[str, Any]:
    """What fits on a screen: a tensor in one line, a hash's beginning, the number of layers."""
    shown: dict[str, Any] = {}
    for name, value in data.items():
        if name == "layers" and value:
            shown[name] = f"{len(value)}, shown with --verbose"
        elif name in ("input", "output"):
            sides = "x".join(map(str, value["shape"]))
            shown[name] = f"{value['name']}, {value['dtype']}, {sides}"
        elif name.endswith("sha256") and isinstance(value, str):
            shown[name] = f"{value[:16]}…"
        else:
            shown[name] = _short(value) if isinstance(value, dict) else value
    return shown


def _engine(path: Path) -> Path:
    """The engine file that is meant: for a sidecar, the engine beside it. For a folder, an error
    that names an engine in it.
    """
    if path.suffix == ".json" and path.with_suffix("").is_file():
        return path.with_suffix("")
    if path.is_dir():
        engines = sorted(
            file
            for depth in ("", "*/", "*/*/")
            for suffix in ("trt", "onnx")
            for file in path.glob(f"{depth}*.{suffix}")
        )
        raise EngineError(
            f"{path}: is a directory, expected an engine file",
            fix=f"for example: {command_line(['qvae', 'inspect', str(engines[0])])}"
            if engines
            else build_command("static", engine_dir=path),
        )
    return path


def doctor(engine_dir: Path = options.ENGINE_DIR_OPTION) -> int:
    """Check this machine and show fixes."""
    from qvae_trt.doctor import diagnose

    checks = diagnose(engine_dir)
    ok = all(check.status != "fail" for check in checks)
    output.emit({"qvae": __version__, "ok": ok, "checks": write(checks)}, _draw_checks)
    return 0 if ok else 1


def _draw_checks(data: dict[str, Any]) -> RenderableType:
    """Each fix is a paragraph of its own: in a narrow column its command could not be copied."""
    fixes = [
        Text.assemble((f"{check['name']}: ", "bold"), check["fix"], no_wrap=True, overflow="ignore")
        for check in data["checks"]
        if check["fix"] is not None
    ]
    return Group(
        records(data["checks"], {"": "status", "what": "name", "found": "detail"}),
        *([Text("\nFixes", style="bold"), *fixes] if fixes else []),
    )
