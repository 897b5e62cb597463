"""A model and an exporter that take no time: what is tested here is the building."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import pytest
import small_graphs

import qvae_trt.export
import qvae_trt.model
from qvae_trt.export import OnnxFile
from qvae_trt.files.reading import sha256_file
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import Model
from qvae_trt.tensors import TensorSpec


@dataclass
class SmallModel:
    """What `build` asks of a model."""

    source: str = "small"
    weights_sha256: str = "a" * 64
    input_channels: int = 3
    z_dim: int = 4
    kind = QWEN_IMAGE
    shape = Model.shape


@dataclass
class Exporter:
    """Stands for `export_onnx`: hand-made graphs, and a list of what was asked for."""

    model: SmallModel = field(default_factory=SmallModel)
    recipe: str = "c" * 64
    calls: list[tuple[str, Any, str, str]] = field(default_factory=list)
    before: Any = None  # called with the part
    scale: float = 1.0  # of the weights: other engines are of other bytes

    def load_model(self, source: str) -> SmallModel:
        return self.model

    def recipe_sha256(self) -> str:
        return self.recipe

    def export_onnx(
        self,
        model: SmallModel,
        part: str,
        out: Path,
        *,
        precision: str,
        resolution: Any,
        lowering: Any,
        progress: Any,
    ) -> OnnxFile:
        self.calls.append((part, resolution, precision, lowering.canonical()))
        if self.before is not None:
            self.before(part)
        progress(f"trace {part}", 1, 2)
        elem = small_graphs.FP16 if precision == "fp16" else small_graphs.FP32
        if part == "encoder":
            side = ("h", "w") if resolution is None else (resolution.height, resolution.width)
            small_graphs.encoder(out, side=side, elem=elem)
        else:
            side = ("h", "w") if resolution is None else QWEN_IMAGE.latents_of(resolution)
            small_graphs.decoder(out, side=side, elem=elem)
        if self.scale != 1.0:
            self._rescale(out)
        names = {"encoder": ("images", "moments"), "decoder": ("latents", "images")}[part]
        dtype: Any = "float16" if precision == "fp16" else "float32"
        # What build takes of these is the name; the shapes come from the backend.
        return OnnxFile(
            out,
            sha256_file(out),
            TensorSpec(names[0], dtype, (1, -1, 1, -1, -1)),
            TensorSpec(names[1], dtype, (1, -1, 1, -1, -1)),
        )

    def _rescale(self, path: Path) -> None:
        graph = onnx.load(str(path))
        (weights,) = [tensor for tensor in graph.graph.initializer if tensor.name == "w"]
        values = onnx.numpy_helper.to_array(weights)
        other = (values * self.scale).astype(values.dtype)
        weights.CopyFrom(onnx.numpy_helper.from_array(other, "w"))
        onnx.save(graph, str(path))


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    fake = Exporter()
    monkeypatch.setattr(qvae_trt.model, "load_model", fake.load_model)
    monkeypatch.setattr(qvae_trt.export, "export_onnx", fake.export_onnx)
    monkeypatch.setattr(qvae_trt.export, "recipe_sha256", fake.recipe_sha256)
    return fake


@pytest.fixture(autouse=True)
def watched_temporary_folder(own_temporary_folder: Path) -> Path:
    return own_temporary_folder
