"""Exported graphs: valid, reproducible, self-contained, and equal to PyTorch in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from folding_cases import inputs, make_vae, make_vae_21, reference

from qvae_trt import export
from qvae_trt.errors import StoreError, UsageError
from qvae_trt.export import OPSET, TENSOR_NAMES, export_onnx, recipe_sha256
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lowerings import Halves, Lowering, choose_lowering
from qvae_trt.model import Model
from qvae_trt.profiles import Part, Precision, Resolution

if TYPE_CHECKING:
    from pathlib import Path

SIZE = Resolution(48, 80)
#: Largest error of each precision's engine on this network, whose outputs are of order 1.
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-2}


@pytest.fixture(scope="module")
def model() -> Model:
    return as_model(3)


@pytest.fixture(scope="module")
def model_21() -> Model:
    return Model(vae=make_vae_21(), source="test", weights_sha256="0" * 64)


def as_model(channels: int) -> Model:
    # One block a level in place of two: tracing takes most of these tests' time.
    vae = make_vae(base_dim=16, input_channels=channels, num_res_blocks=1)
    return Model(vae=vae, source="test", weights_sha256="0" * 64)


def run(path: Path, value: np.ndarray) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return torch.from_numpy(cast("np.ndarray", session.run(None, {name: value})[0])).float()


def sides_of(tensor: onnx.ValueInfoProto) -> list[str]:
    return [dim.dim_param for dim in tensor.type.tensor_type.shape.dim[3:]]


def expected(model: Model, part: Part, resolution: Resolution) -> tuple[torch.Tensor, torch.Tensor]:
    size = resolution.height, resolution.width
    pixels, latents = inputs(model.input_channels, 1, *size, scale=model.kind.scale)
    moments, images = reference(model.vae, pixels, latents)
    return (pixels, moments) if part == "encoder" else (latents, images)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_static(model: Model, part: Part, precision: Precision, tmp_path: Path) -> None:
    file = export_onnx(model, part, tmp_path / "part.onnx", precision=precision, resolution=SIZE)
    source, target = expected(model, part, SIZE)
    assert (file.input.name, file.output.name) == TENSOR_NAMES[part]
    assert (file.input.shape, file.output.shape) == (tuple(source.shape), tuple(target.shape))
    found = run(file.path, source.numpy().astype(file.input.dtype))
    torch.testing.assert_close(found, target, rtol=0, atol=TOLERANCE[precision])


@pytest.mark.parametrize("lowering", ["8.6.1", "10.0", "onnxruntime"])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_dynamic(model: Model, part: Part, lowering: str, tmp_path: Path) -> None:
    flavour = "onnxruntime" if lowering == "onnxruntime" else "tensorrt"
    chosen = choose_lowering(flavour, lowering, "fp16")
    file = export_onnx(model, part, tmp_path / "part.onnx", precision="fp32", lowering=chosen)
    assert file.input.shape[3:] == file.output.shape[3:] == (-1, -1)
    graph = onnx.load(file.path).graph
    sides = [sides_of(graph.input[0]), sides_of(graph.output[0])]
    pixels, latents = ["8*h", "8*w"], ["h", "w"]
    assert sides == ([pixels, latents] if part == "encoder" else [latents, pixels])
    least = chosen.fewest_latents * 8
    for size in (Resolution(8, least), Resolution(32, 32), SIZE, Resolution(88, 40)):
        source, target = expected(model, part, size)
        torch.testing.assert_close(run(file.path, source.numpy()), target, rtol=0, atol=2e-5)
    source, _ = expected(model, part, Resolution(8, least - 8))
    with pytest.raises(Exception, match=r"[Rr]eshape"):
        run(file.path, source.numpy())


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_2_1_of_any_size(model_21: Model, part: Part, tmp_path: Path) -> None:
    """With the lowering of TensorRT 8.6, whose norms hold the powers of two."""
    chosen = choose_lowering("tensorrt", "8.6.1", "fp16")
    file = export_onnx(model_21, part, tmp_path / "p.onnx", precision="fp32", lowering=chosen)
    graph = onnx.load(file.path).graph
    sides = [sides_of(graph.input[0]), sides_of(graph.output[0])]
    pixels, latents = ["16*h", "16*w"], ["h", "w"]
    assert sides == ([pixels, latents] if part == "encoder" else [latents, pixels])
    for size in (Resolution(16, 16 * chosen.fewest_latents), Resolution(80, 48)):
        source, target = expected(model_21, part, size)
        torch.testing.assert_close(run(file.path, source.numpy()), target, rtol=0, atol=2e-5)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize(
    ("kind", "flavour", "halves"),
    [
        ("model", "10.0", "last"),
        ("model", "8.6.1", "last_two"),
        ("model_21", "8.6.1", "last"),
        ("model_21", "8.6.1", "last_two"),
    ],
)
def test_halves_of_any_size(
    kind: str,
    part: Part,
    flavour: str,
    halves: Halves,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(kind)
    file = export_onnx(
        model,
        part,
        tmp_path / "p.onnx",
        precision="fp32",
        lowering=replace(choose_lowering("tensorrt", flavour, "fp16"), halves=halves),
    )
    for size in (Resolution(256, 32), Resolution(304, 64)):
        source, target = expected(model, part, size)
        torch.testing.assert_close(run(file.path, source.numpy()), target, rtol=0, atol=2e-5)
    joins = 2 if (part, halves) == ("decoder", "last_two") else 1
    check_that_halves_save_memory(onnx.load(file.path).graph, joins)


def check_that_halves_save_memory(graph: onnx.GraphProto, expected_joins: int) -> None:
    """The second half waits for the first, and its length has a bound of its own."""
    makers = {name: node for node in graph.node for name in node.output}

    def kinds(node: onnx.NodeProto) -> list[str]:
        return [makers[name].op_type for name in node.input if name in makers]

    joins = [node for node in graph.node if node.op_type == "Concat" and len(node.input) == 2]
    found = [node for node in joins if kinds(node) == ["Slice"] * 2]
    assert len(found) == expected_joins
    for joined in found:
        name = joined.input[0]
        while makers[name].op_type != "Clip":  # one value of the first half, made 0
            (user,) = (
                n for n in graph.node if n.op_type in ("Slice", "Clip") and n.input[0] == name
            )
            name = user.output[0]
        (waiting,) = (node for node in graph.node if node.op_type == "Add" and name in node.input)
        cut = makers[next(other for other in waiting.input if other != name)]
        assert cut.op_type == "Slice"
        assert kinds(cut)[0] == "Slice"


@pytest.mark.parametrize(("side", "upsamplings"), [(1792, 4), (1824, 5)])
def test_a_large_graph_has_its_last_upsampling_in_halves(
    model_21: Model, side: int, upsamplings: int, tmp_path: Path
) -> None:
    file = export_onnx(model_21, "decoder", tmp_path / "d.onnx", resolution=Resolution(side, side))
    nodes = onnx.load(file.path).graph.node
    assert [node.op_type for node in nodes].count("ConvTranspose") == upsamplings


def test_2_1_of_one_size_in_bf16(model_21: Model, tmp_path: Path) -> None:
    out = tmp_path / "p.onnx"
    file = export_onnx(model_21, "decoder", out, precision="bf16", resolution=SIZE)
    source, target = expected(model_21, "decoder", SIZE)
    assert (file.input.shape, file.output.shape) == (tuple(source.shape), tuple(target.shape))


def test_rgba(tmp_path: Path) -> None:
    model = as_model(4)
    for part in ("encoder", "decoder"):
        file = export_onnx(model, part, tmp_path / "part.onnx", precision="fp32", resolution=SIZE)
        source, target = expected(model, part, SIZE)
        torch.testing.assert_close(run(file.path, source.numpy()), target, rtol=0, atol=2e-5)


def test_video_graph_is_the_shipped_one(model: Model, tmp_path: Path) -> None:
    file = export_onnx(
        model, "decoder", tmp_path / "v.onnx", precision="fp32", graph="video", resolution=SIZE
    )
    source, target = expected(model, "decoder", SIZE)
    torch.testing.assert_close(run(file.path, source.numpy()), target, rtol=0, atol=2e-5)
    ranks = {len(tensor.dims) for tensor in onnx.load(file.path).graph.initializer}
    assert 5 in ranks
    assert next(model.vae.parameters()).dtype == torch.float32


def test_bf16_is_in_the_graph(model: Model, tmp_path: Path) -> None:
    file = export_onnx(model, "decoder", tmp_path / "b.onnx", precision="bf16", resolution=SIZE)
    assert file.input.dtype == file.output.dtype == "bfloat16"
    constants = {tensor.name: tensor for tensor in onnx.load(file.path).graph.initializer}
    nodes = onnx.load(file.path).graph.node
    weights = [constants[node.input[1]] for node in nodes if node.op_type.startswith("Conv")]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.BFLOAT16}


def test_files_are_reproducible_and_private(model: Model, tmp_path: Path) -> None:
    first, second = (
        export_onnx(model, "decoder", tmp_path / f"{name}.onnx", resolution=SIZE) for name in "ab"
    )
    assert first.sha256 == second.sha256
    proto = onnx.load(first.path, load_external_data=False)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", OPSET)]
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert not any(node.metadata_props or node.doc_string for node in proto.graph.node)
    assert len(recipe_sha256()) == 64


@pytest.mark.parametrize("flavour", ["onnxruntime", "tensorrt"])
def test_no_tensor_holds_all_scores(flavour: str, model: Model, tmp_path: Path) -> None:
    """No tensor inside the graph has as many elements as tokens squared."""
    size = Resolution(512, 512)
    file = export_onnx(
        model,
        "decoder",
        tmp_path / "d.onnx",
        resolution=size,
        lowering=choose_lowering(flavour, "8.6.1", "fp16"),
    )
    proto = onnx.shape_inference.infer_shapes(onnx.load(file.path), data_prop=True)
    tokens = QWEN_IMAGE.latents_of(size)[0] * QWEN_IMAGE.latents_of(size)[1]
    seen = 0
    for value in proto.graph.value_info:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        seen = max(seen, int(np.prod(dims)) if len(dims) == 3 else 0)
    assert tokens * tokens // 8 <= seen <= tokens * tokens // 4


def test_refuses_fused_attention(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="attention=fused"):
        export_onnx(model, "decoder", tmp_path / "d.onnx", lowering=Lowering())
    with pytest.raises(UsageError, match="video"):
        export_onnx(model, "decoder", tmp_path / "d.onnx", graph="video", lowering=Lowering())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def quick_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that takes no time."""
    source, target = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT16, (1, 16, 1, 6, 10))
        for name in TENSOR_NAMES["decoder"]
    )
    node = onnx.helper.make_node("Identity", [source.name], [target.name])
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "quick", [source], [target]))
    monkeypatch.setattr(export, "_trace", lambda *_, **__: proto)


@pytest.mark.usefixtures("quick_trace")
def test_nothing_is_left_where_it_cannot_be_written(model: Model, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError):
        export_onnx(model, "decoder", blocked / "d.onnx", resolution=SIZE)
    assert list(tmp_path.iterdir()) == [blocked]
    assert blocked.read_text() == "not a folder"


@pytest.mark.usefixtures("quick_trace")
@pytest.mark.parametrize("stage", ["fold", "trace", "check"])
def test_interrupted_export_leaves_the_old_file(stage: str, model: Model, tmp_path: Path) -> None:
    old = tmp_path / "d.onnx"
    old.write_text("the old file")

    def stop(now: str, done: int, total: int) -> None:
        if now.startswith(stage):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, "decoder", old, resolution=SIZE, progress=stop)
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_text() == "the old file"
