"""benchmarks/gpu/attention_memory.py: its forms of attention are exact, and differ as they say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import attention_memory
import onnxruntime
import pytest
import torch
from attention_memory import FORMS

from qvae_trt.folding.attention import Attention
from qvae_trt.lowerings import PYTORCH

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

#: The first is the size of the graph without ranges.
SIZES = ((8, 12), (4, 4), (5, 9))
#: Slices by a size that is known only at run time. Else: more keys, values, queries; fewer results.
FILLED = {
    "static": 0,
    "whole": 0,
    **dict.fromkeys(("seven", "fourteen", "twenty-eight", "one-zero", "select"), 2),
    **dict.fromkeys(("unpadded", "unpadded-inter", "keys-as-they-are"), 2),
}
#: Their centre is the mean of a sample.
PACKAGE = ("static", "package", "package-10", "package-14")
SAMPLED = (*PACKAGE, "seven", "fourteen", "twenty-eight", "one-zero", "select", "keys-as-they-are")


@pytest.fixture(scope="module")
def block() -> nn.Module:
    return attention_memory.encoder_attention("bundled:tiny")


def picture(block: nn.Module, height: int, width: int) -> Tensor:
    return torch.randn(1, block.norm.gamma.numel(), 1, height, width)


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_exact_and_has_the_operations_that_it_names(
    block: nn.Module, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = replace(attention_memory.LOWERING, attention_chunks=2)  # runs, for a short export
    monkeypatch.setattr(attention_memory, "LOWERING", fewer)
    proto = attention_memory.graph_of(block, name, picture(block, *SIZES[0]))
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    exact = Attention(block, PYTORCH)
    for height, width in SIZES[:1] if name == "static" else SIZES:
        x = picture(block, height, width)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            wanted = exact(x[:, :, 0])[:, :, None]
        torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
    kinds = [node.op_type for node in proto.graph.node]
    in_float32 = name in ("scan", "barrier")
    assert ("Expand" in kinds) == in_float32
    has_centre = in_float32 or "half-centre" in name or name in SAMPLED
    assert ("ReduceMean" in kinds) == has_centre
    assert ("Scan" in kinds) == (name == "scan")
    in_norm, around = 2, 2
    assert kinds.count("Conv") == in_norm + around + ("barrier" in name)
    assert sum(by_size(proto.graph)) == FILLED.get(name, 4)


def by_size(graph: onnx.GraphProto) -> list[bool]:
    """Of each slice: is it cut at a place that is known only at run time?"""
    constants = {tensor.name for tensor in graph.initializer}
    cuts = [node.input[1:3] for node in graph.node if node.op_type == "Slice"]
    return [not constants.issuperset(places) for places in cuts]


def test_the_table_tells_what_failed_too(tmp_path) -> None:
    (tmp_path / "package.json").write_text('{"form": "package", "failed": "exit 1: a\\nb | c"}')
    (tmp_path / "scan.json").write_text('{"form": "scan", "build_seconds": 1.5}')
    rows = attention_memory.table(tmp_path).splitlines()[2:]
    assert [row.count("|") for row in rows] == [7, 7]
    assert "b / c" in rows[0]
    assert "1.5" in rows[1]
