"""`qvae lightx2v`, `qvae triton`: folders of engines for other programs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import counted, records
from qvae_trt.commands import build_command
from qvae_trt.json_rows import write
from qvae_trt.profiles import MODES, load_static_sizes

if TYPE_CHECKING:
    from qvae_trt.lightx2v_folder import Placed


def lightx2v(
    out: Path = Option(..., metavar="FOLDER", help="The folder to make for LightX2V."),
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    copy: bool = Option(False, "--copy", help="Copy files; else relative links."),
    backend: Literal["tensorrt", "onnxruntime"] = Option(
        "tensorrt",
        help="Whose engines. LightX2V can open those of tensorrt only.",
    ),
) -> int:
    """Make the folder that LightX2V's TensorRT loader opens.

    Only engines that it runs correctly are put there. Exit code 1 if there is none.
    """
    from qvae_trt.lightx2v_folder import configuration, make_folder

    placed = make_folder(engine_dir, out, backend=backend, copy=copy)
    usable = {engine.mode for engine in placed if engine.usable}
    configs = {mode: configuration(out, mode) for mode in MODES if mode in usable}
    engines = [write(engine) for engine in placed]
    output.emit({"engines": engines, "configurations": configs}, _draw_folder)
    for command in _commands(placed, engine_dir, backend):
        output.tell(f"to build what is not there: {command}")
    if backend != "tensorrt" and usable:
        output.warn(f"LightX2V opens TensorRT's engines only, and these are of {backend}")
    return 0 if usable else 1


def _commands(placed: list[Placed], engine_dir: Path, backend: str) -> list[str]:
    """Commands that build what is missing, all sizes in one, and the fix of each refused engine."""
    missing = [engine.size for engine in placed if engine.status == "missing"]
    sizes = dict.fromkeys(size for size in missing if size is not None)
    named = sizes if len(sizes) < len(load_static_sizes()) else ()
    build = partial(build_command, backend=backend, engine_dir=engine_dir)
    commands = [build("static", *named)] if sizes else []
    commands += [build("profiles")] if None in missing else []
    refused = [engine for engine in placed if engine.status == "refused"]
    commands += [engine.fix for engine in refused if engine.fix is not None]
    return list(dict.fromkeys(commands))


def _draw_folder(data: dict[str, Any]) -> RenderableType:
    def why(engine: Any) -> str:
        mark = "→" if engine["status"] in ("linked", "copied") else "no file"
        return engine["reason"] or f"{mark} {engine['engine']}"

    columns: dict[str, Any] = {
        "": "status",
        "engine": "part",
        "opened for": lambda engine: engine["size"] or "nine profiles",
        "as": "path",
        "why": why,
    }
    title = counted(engine["status"] for engine in data["engines"])
    configs = (
        f"\n{mode}, for LightX2V's configuration:\n{json.dumps(config, indent=2)}"
        for mode, config in data["configurations"].items()
    )
    return Group(records(data["engines"], columns, title=title, spare=("as",)), *configs)


def triton(
    out: Path = Option(..., metavar="REPOSITORY", help="The model repository to make."),
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    backend: Literal["tensorrt", "onnxruntime"] = Option(
        "tensorrt", help="Whose engines, and Triton's backend that runs them."
    ),
    link: bool = Option(False, "--link", help="Relative links; else copies."),
) -> int:
    """Make a model repository for Triton Inference Server.

    Each engine becomes a model. Exit code 1 if there is none.
    """
    from qvae_trt.triton_repository import make_repository

    models = make_repository(engine_dir, out, backend=backend, link=link)
    output.emit({"models": [write(model) for model in models]}, _draw_models)
    for fix in dict.fromkeys(model.fix for model in models if model.fix is not None):
        output.tell(f"to build what was refused: {fix}")
    return 0 if any(not model.reason for model in models) else 1


def _draw_models(data: dict[str, Any]) -> RenderableType:
    columns: dict[str, Any] = {
        "": "status",
        "model": "name",
        "why": lambda model: model["reason"] or f"of {model['engine']}",
    }
    return records(data["models"], columns)
