"""fp16 engines of the bundled VAE, and ways to change one so that only its picture tells."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import ort_engines
from onnx import helper, numpy_helper
from store_cases import put_engine

from qvae_trt import store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZES = [ort_engines.STATIC]


def fp16_engines(tmp_path_factory) -> Path:
    """A static pair and a pair with one profile, one folder for all test processes of a session."""
    folder = ort_engines.base(tmp_path_factory) / "ort-engines-fp16"
    return ort_engines.build(folder, precision="fp16")


def only(engines: Path, tmp_path: Path, mode: str) -> Path:
    """A copy with the engines of one mode."""
    shutil.copytree(engines / mode, tmp_path / "engines" / mode)
    return tmp_path / "engines"


def rewrite(path: Path, *, data: bytes | None = None, key: dict[str, object] | None = None) -> None:
    """Put other bytes or another key in place, with a sidecar that fits them."""
    sidecar = store.read_sidecar(path)
    sidecar = dataclasses.replace(sidecar, key=dataclasses.replace(sidecar.key, **(key or {})))
    put_engine(path, sidecar, path.read_bytes() if data is None else data)


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    """Edit the graph of an onnxruntime engine."""
    proto = onnx.load(path)
    edit(proto)
    rewrite(path, data=proto.SerializeToString())


def kernels(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The kernels of the convolutions."""
    return [t for t in proto.graph.initializer if len(t.dims) == 4 and t.dims[0] > 1]


def gains(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The gains of the norms."""
    return [t for t in proto.graph.initializer if len(t.dims) == 4 and t.dims[0] == 1]


def replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    old = numpy_helper.to_array(tensor)
    tensor.CopyFrom(
        numpy_helper.from_array(values.astype(old.dtype).reshape(old.shape), tensor.name)
    )


def after_output(proto: onnx.ModelProto, *, axis: int, order: list[int]) -> None:
    """Put the planes of the output along `axis` in another order, in the graph itself."""
    output = proto.graph.output[0]
    for node in proto.graph.node:
        node.output[:] = [f"{n}.before" if n == output.name else n for n in node.output]
        node.input[:] = [f"{n}.before" if n == output.name else n for n in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(order, np.int64), "order"))
    proto.graph.node.append(
        helper.make_node("Gather", [f"{output.name}.before", "order"], [output.name], axis=axis)
    )
