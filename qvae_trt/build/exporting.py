"""The body of an export process: graphs one by one, of a model that is loaded once."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qvae_trt.export import export_onnx
from qvae_trt.lowerings import Lowering
from qvae_trt.model import Model, load_model
from qvae_trt.profiles import Resolution
from qvae_trt.workers.child import answer

if TYPE_CHECKING:
    from qvae_trt.progress import Progress


def serve(request: dict[str, Any]) -> None:
    """Exports the graph that the request describes."""
    answer(request, _export)


def _export(request: dict[str, Any], progress: Progress) -> object:
    model = _model(request["model"])
    sides = request["resolution"]
    exported = export_onnx(
        model,
        request["part"],
        Path(request["out"]),
        precision=request["precision"],
        resolution=None if sides is None else Resolution(**sides),
        lowering=Lowering.parse(request["lowering"]),
        progress=progress,
    )
    return {
        "sha256": exported.sha256,
        "input": asdict(exported.input),
        "output": asdict(exported.output),
        "weights_sha256": model.weights_sha256,
    }


@cache
def _model(source: str) -> Model:
    return load_model(source)
