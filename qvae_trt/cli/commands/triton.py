"""`qvae triton --out REPOSITORY`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.console import RenderableType
from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import records
from qvae_trt.json_rows import write


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
    output.emit({"models": [write(model) for model in models]}, _draw)
    for fix in dict.fromkeys(model.fix for model in models if model.fix is not None):
        output.tell(f"to build what was refused: {fix}")
    return 0 if any(not model.reason for model in models) else 1


_COLUMNS: dict[str, Any] = {
    "": "status",
    "model": "name",
    "why": lambda model: model["reason"] or f"of {model['engine']}",
}


def _draw(data: dict[str, Any]) -> RenderableType:
    return records(data["models"], _COLUMNS)
