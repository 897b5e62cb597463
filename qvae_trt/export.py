"""PyTorch → ONNX: one self-contained file for one part of the VAE.

The image graph is opset 17, which TensorRT 8.6 to 11, TensorRT-RTX and ONNX Runtime all take, and
opset 22 in bfloat16; the video graph, kept for comparison, stays as the exporter writes it. A graph
carries its own precision: half-precision weights and tensors, casts where float32 is wanted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from qvae_trt import folding, lowerings
from qvae_trt.errors import BuildError, UsageError
from qvae_trt.files.reading import sha256_file
from qvae_trt.files.writing import replace_file
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.lowerings import Lowering, choose_lowering
from qvae_trt.model import Model, half_of
from qvae_trt.profiles import Part, Precision, Profile, Resolution
from qvae_trt.progress import Progress, ignore
from qvae_trt.tensors import DTYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from diffusers import AutoencoderKLQwenImage

Graph = Literal["image", "video"]

OPSET = 17
#: The first in which Conv takes bfloat16, which TensorRT 8.6 has not at all.
OPSET_BF16 = 22
#: The oldest that PyTorch's exporter writes.
_OLDEST_TRACED = 18
#: Names of the one input and the one output of each part.
TENSOR_NAMES: dict[Part, tuple[str, str]] = {
    "encoder": ("images", "moments"),
    "decoder": ("latents", "images"),
}
#: A dynamic graph is traced at this size, of which nothing stays in it.
_TRACED_AT = Resolution(160, 224)
#: More sides than a tensor has: the end of a slice that has none.
_MOST_SIDES = 2**31 - 1
#: Sides of a dynamic graph, in latents: 32 to 8192 pixels, or twice that.
_SMALLEST_LATENT, _LARGEST_LATENT = 4, 1024


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An exported graph. A dynamic axis is -1 in the specs."""

    path: Path
    sha256: str
    input: TensorSpec
    output: TensorSpec


class _Part(nn.Module):
    """One method of a VAE as a module, which is what the exporter takes."""

    def __init__(self, vae: nn.Module, part: Part) -> None:
        super().__init__()
        self.vae = vae
        self.part = part
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.vae, FoldedVae):
            return self.vae.encode(x) if self.part == "encoder" else self.vae.decode(x)
        return half_of(cast("AutoencoderKLQwenImage", self.vae), self.part)(x)


def export_onnx(
    model: Model,
    part: Part,
    out: Path,
    *,
    precision: Precision = "fp16",
    graph: Graph = "image",
    resolution: Resolution | None = None,
    lowering: Lowering | None = None,
    progress: Progress = ignore,
) -> OnnxFile:
    """Write one part of the VAE as ONNX.

    Args:
        model: what `load_model` returned.
        part: `encoder`: images (1, C, 1, H, W) in [-1, 1] → moments (1, 2z, 1, H/8, W/8), mean
            first; or `decoder`: un-normalised latents (1, z, 1, h, w) → images (1, C, 1, 8h, 8w)
            in [-1, 1]. Of Qwen-Image-2.1, 16 for 8.
        out: the file to write, replaced as a whole.
        precision: of weights, input and output.
        graph: `image` is the exact 2D graph of one frame, `video` the Conv3d graph of diffusers.
        resolution: the one size of the graph, in pixels; None leaves height and width dynamic.
        lowering: how the folded graph is written; None takes the one for current TensorRT, for a
            graph of any size without halves.
        progress: called with the stage, steps done and steps in all; what it raises ends the work.

    Raises:
        UsageError: the lowering has no ONNX, or one was given for a `video` graph.
        BuildError: the exporter or the ONNX checker refused the graph.
        StoreError: the file could not be written.
    """
    if graph == "video" and lowering is not None:
        raise UsageError(
            "the video graph has no lowering: it is diffusers' own",
            fix='leave out the lowering, or use graph="image"',
        )
    steps = iter(range(4))

    def step(stage: str) -> None:
        progress(stage, next(steps), 3)

    step(f"fold {part}")
    network: nn.Module
    if graph == "image":
        if lowering is None:
            now = ("tensorrt", "11")
            sizes = [] if resolution is None else [Profile.fixed(resolution)]
            lowering = choose_lowering(*now, precision).for_sizes(sizes, *now)
        if lowering.attention == "fused":
            what = (
                "the lowering attention=fused is PyTorch's own and has no ONNX without N x N scores"
            )
            raise UsageError(what, fix="use attention=softmax or attention=exp")
        network = fold(model.vae, lowering=lowering)
    else:
        # A copy: `.to` below must not change the caller's weights.
        network = type(model.vae).from_config(model.vae.config)
        network.load_state_dict(model.vae.state_dict())
    # diffusers' own `to` warns of float32 modules that this model does not have.
    dtype = getattr(torch, DTYPES[precision])
    network = nn.Module.to(network.eval().requires_grad_(False), dtype=dtype)
    step(f"trace {part}")
    example = torch.zeros(model.shape(part, resolution or _TRACED_AT), dtype=dtype)
    scale = None if resolution is not None else model.kind.scale
    proto = onnx_of(_Part(network, part), example, part, graph=graph, scale=scale)
    if scale is not None:
        _name_sides(proto.graph, part, scale)
    step(f"check {part}")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(
            f"the exported {part} is not valid ONNX: {error}",
            fix="please report this with `qvae doctor --json`",
        ) from error
    with replace_file(out) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
    step(f"write {part}")
    return OnnxFile(
        out,
        sha256_file(out),
        _spec(proto.graph.input[0], precision),
        _spec(proto.graph.output[0], precision),
    )


def onnx_of(
    module: nn.Module,
    example: Tensor,
    part: Part,
    *,
    graph: Graph = "image",
    scale: int | None,
) -> onnx.ModelProto:
    """A module with the input and output of a part as ONNX that every TensorRT here reads.

    Args:
        module: takes and gives one tensor of five dimensions.
        example: an input; its dtype is that of the module.
        part, graph: as :func:`export_onnx` takes them.
        scale: how many pixels of a side one latent stands for, and height and width are free; None:
            they are those of the example.
    """
    in_bf16 = example.dtype == torch.bfloat16
    opset = OPSET_BF16 if in_bf16 else _OLDEST_TRACED
    proto = _trace(module, example, part, opset=opset, scale=scale)
    if graph == "image":
        _slice_shapes(proto.graph)
        if not in_bf16:
            _drop_casts_around_max(proto.graph)
            _to_opset_17(proto)
    _make_reproducible(proto)
    return proto


def recipe_sha256() -> str:
    """Hash of the source that decides what graph a model becomes.

    An engine of the same recipe, weights and lowering need not be exported to be known.
    """
    package = Path(str(folding.__file__)).parent
    sources = [*sorted(package.glob("*.py")), Path(str(lowerings.__file__)), Path(__file__)]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _trace(
    module: nn.Module, example: Tensor, part: Part, *, opset: int, scale: int | None
) -> onnx.ModelProto:
    dynamic_shapes = None
    if scale is not None:
        height, width = (
            torch.export.Dim(name, min=_SMALLEST_LATENT, max=_LARGEST_LATENT) for name in ("h", "w")
        )
        sides = (scale * height, scale * width) if part == "encoder" else (height, width)
        dynamic_shapes = ({3: sides[0], 4: sides[1]},)
    source, target = TENSOR_NAMES[part]
    with _quiet_exporter(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=dynamic_shapes,
                input_names=[source],
                output_names=[target],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise BuildError(
                f"PyTorch could not export the {part}: {error}",
                fix="install the versions of constraints.txt",
            ) from error
    return cast("torch.onnx.ONNXProgram", program).model_proto


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence warnings about the exporter's own internals and about packages not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_opset_17(proto: onnx.ModelProto) -> None:
    """Write what opset 18 changed the way opset 17 has it; the checker proves the rest unchanged.

    TensorRT 8.6 does not read the axes of a later ReduceMax and would reduce over all of them.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        # ReduceSum has read its axes from an input since opset 13.
        reduces = node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
        if reduces and len(node.input) > 1:
            axes = onnx.numpy_helper.to_array(constants[node.input[1]]).tolist()
            del node.input[1:]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
            newer = {"noop_with_empty_axes"}
        elif node.op_type == "Resize":
            newer = {"antialias", "axes", "keep_aspect_ratio_policy"}
        else:
            continue
        kept = [attribute for attribute in node.attribute if attribute.name not in newer]
        del node.attribute[:]
        node.attribute.extend(kept)
    proto.opset_import[0].version = OPSET


def _slice_shapes(graph: onnx.GraphProto) -> None:
    """Shape of some sides -> Shape of all of them, then Slice.

    TensorRT 8.6 does not read which sides a Shape is asked for, which opset 15 brought; which of
    the first 10 releases does is not known.
    """
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type != "Shape" or not node.attribute:
            continue
        sides = {attribute.name: attribute.i for attribute in node.attribute}
        result = node.output[0]
        del node.attribute[:]
        node.output[0] = f"{result}_all"
        bounds = {"starts": sides.get("start", 0), "ends": sides.get("end", _MOST_SIDES)}
        for name, value in bounds.items():
            values = np.array([value], dtype=np.int64)
            graph.initializer.append(onnx.numpy_helper.from_array(values, f"{result}_{name}"))
        inputs = [node.output[0], *(f"{result}_{name}" for name in bounds)]
        nodes.append(onnx.helper.make_node("Slice", inputs, [result], name=f"{node.name}_sides"))
    del graph.node[:]
    graph.node.extend(nodes)


def _drop_casts_around_max(graph: onnx.GraphProto) -> None:
    """A maximum is exact in half precision; the exporter widens it, which doubles its bytes."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    makers = {name: node for node in graph.node for name in node.output}
    dropped = []
    for node in graph.node:
        if node.op_type != "ReduceMax" or len(users.get(node.output[0], [])) != 1:
            continue
        before, after = makers.get(node.input[0]), users[node.output[0]][0]
        if before is not None and before.op_type == after.op_type == "Cast":
            node.input[0], node.output[0] = before.input[0], after.output[0]
            dropped.append(after)
            if users[before.output[0]] == [node]:
                dropped.append(before)
    for node in dropped:
        graph.node.remove(node)


def _name_sides(graph: onnx.GraphProto, part: Part, scale: int) -> None:
    """Dynamic sides as this project writes them; the exporter numbers those that it does not know.

    Latents have h and w, pictures 8*h and 8*w, or 16 times.
    """
    pixels, latents = graph.input[0], graph.output[0]
    if part == "decoder":
        pixels, latents = latents, pixels
    for tensor, factor in ((pixels, f"{scale}*"), (latents, "")):
        for side, name in zip(tensor.type.tensor_type.shape.dim[-2:], "hw", strict=True):
            side.dim_param = f"{factor}{name}"


def _make_reproducible(proto: onnx.ModelProto) -> None:
    """Drop source paths and tool versions: the same weights and recipe give the same bytes."""
    graph = proto.graph
    # Shapes inside are inferred anew by whoever reads the file.
    del graph.value_info[:]
    for item in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    graph.name = "qvae"
    proto.producer_name, proto.producer_version = "qvae", ""


def _spec(value: onnx.ValueInfoProto, precision: Precision) -> TensorSpec:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims)
    return TensorSpec(name=value.name, dtype=DTYPES[precision], shape=shape)
