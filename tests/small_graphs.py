"""Small hand-made ONNX graphs with the engines' tensors: five dimensions, one input, one output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qvae_trt.backends import BuildSpec
from qvae_trt.tensors import ShapeRange

if TYPE_CHECKING:
    from pathlib import Path

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT
#: Of the input of `decoder`.
WIDE = ShapeRange((1, 4, 1, 4, 4), (1, 4, 1, 16, 16), (1, 4, 1, 32, 32))
SMALL = ShapeRange((1, 4, 1, 4, 4), (1, 4, 1, 8, 8), (1, 4, 1, 12, 12))
FIXED = ShapeRange.fixed((1, 4, 1, 16, 24))


def spec(*ranges: ShapeRange, **settings: Any) -> BuildSpec:
    """How to build `decoder`: in fp16 with the range WIDE, unless given."""
    settings.setdefault("precision", "fp16")
    return BuildSpec(ranges=ranges or (WIDE,), **settings)


def decoder(
    path: Path,
    *,
    side: tuple[int | str, int | str] = ("h", "w"),
    elem: int = FP16,
    channels: int = 4,
    cast: bool = False,
) -> Path:
    """`latents` (1, C, 1, h, w) -> `images` (1, 3, 1, 8h, 8w): convolution, SiLU, repeat 8 times.

    `cast` puts the sigmoid into fp32, between two Casts.
    """
    kind = np.float16 if elem == FP16 else np.float32
    weight = np.random.default_rng(0).standard_normal((3, channels, 3, 3)).astype(kind) / 8
    consts = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "two"),
        numpy_helper.from_array(np.array([1, 1, 8, 8], dtype=np.float32), "scales"),
    ]
    wide = "a32" if cast else "a"
    nodes = [
        helper.make_node("Squeeze", ["latents", "two"], ["x"]),
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        *([helper.make_node("Cast", ["a"], ["a32"], to=FP32)] if cast else []),
        helper.make_node("Sigmoid", [wide], ["s32" if cast else "s"]),
        *([helper.make_node("Cast", ["s32"], ["s"], to=elem)] if cast else []),
        helper.make_node("Mul", ["a", "s"], ["m"]),
        helper.make_node(
            "Resize",
            ["m", "", "scales"],
            ["u"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        ),
        helper.make_node("Unsqueeze", ["u", "two"], ["images"]),
    ]
    out = tuple(8 * s if isinstance(s, int) else f"8*{s}" for s in side)
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("latents", elem, [1, channels, 1, *side])],
        [helper.make_tensor_value_info("images", elem, [1, 3, 1, *out])],
        consts,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def run_decoder(latents: np.ndarray, *, channels: int = 4) -> np.ndarray:
    """What `decoder` computes, in float32 with numpy."""
    kind = latents.dtype
    weight = np.random.default_rng(0).standard_normal((3, channels, 3, 3)).astype(kind) / 8
    x = np.pad(latents[0, :, 0].astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    a = np.einsum("chwij,ocij->ohw", windows, weight.astype(np.float32))
    m = a / (1 + np.exp(-a))
    return np.kron(m, np.ones((1, 8, 8), np.float32))[None, :, None]


def with_shape_arithmetic(path: Path) -> Path:
    """As `decoder`, but the last Unsqueeze is a Reshape to a shape that is computed."""
    decoder(path)
    model = onnx.load(str(path))
    graph = model.graph
    last = graph.node.pop()
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1, 3, 1], dtype=np.int64), "head"),
            numpy_helper.from_array(np.array([2, 3], dtype=np.int64), "sides"),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Shape", ["u"], ["u_shape"]),
            helper.make_node("Gather", ["u_shape", "sides"], ["hw"]),
            helper.make_node("Concat", ["head", "hw"], ["shape"], axis=0),
            helper.make_node("Reshape", ["u", "shape"], [last.output[0]]),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def node_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def encoder(
    path: Path, *, side: tuple[int | str, int | str] = ("h", "w"), elem: int = FP16
) -> Path:
    """`images` (1, 3, 1, H, W) -> `moments` (1, 8, 1, H/8, W/8): the mean of 8x8 pixels, mixed."""
    kind = np.float16 if elem == FP16 else np.float32
    weight = np.random.default_rng(1).standard_normal((8, 3, 1, 1)).astype(kind)
    consts = [
        numpy_helper.from_array(weight, "w"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "two"),
    ]
    nodes = [
        helper.make_node("Squeeze", ["images", "two"], ["x"]),
        helper.make_node("AveragePool", ["x"], ["a"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["a", "w"], ["c"]),
        helper.make_node("Unsqueeze", ["c", "two"], ["moments"]),
    ]
    out = tuple(s // 8 if isinstance(s, int) else s for s in side)
    pixels = tuple(s if isinstance(s, int) else f"8*{s}" for s in side)
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("images", elem, [1, 3, 1, *pixels])],
        [helper.make_tensor_value_info("moments", elem, [1, 8, 1, *out])],
        consts,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path
