"""Variants: as text, those that can be built, and the fastest that is right."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_cases import DEFAULT, measured

from qvae_trt.lowerings import Lowering
from qvae_trt.profiles import BACKENDS, PARTS, Precision
from qvae_trt.tune.run import fastest
from qvae_trt.tune.variants import Variant, curated, default_variant


def test_a_variant_as_text() -> None:
    base = Variant(Lowering(norm="conv_spread", attention="exp", attention_chunks=8))
    changed = base.changed("attention_chunks=4, level=2")
    assert (changed.lowering.norm, changed.lowering.attention_chunks) == ("conv_spread", 4)
    assert changed.level == 2
    assert changed.against(base) == "attention_chunks=4,level=2"
    assert base.against(base) == "default"
    assert base.changed("default") == base
    for variant in (base, changed):
        assert Variant(Lowering()).changed(str(variant)) == variant


@pytest.mark.parametrize("flavour", BACKENDS)
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("part", PARTS)
def test_curated_variants_can_be_built(flavour: str, precision: Any, part: Any) -> None:
    default = default_variant(flavour, "8.6.1", precision)
    tried = [
        default.changed(f"{name}={value}")
        for name, values in curated(flavour, precision, part, (8, 8))
        for value in values
    ]
    assert tried
    assert all(v.lowering.attention != "fused" for v in tried)  # has no ONNX
    if flavour != "tensorrt":
        assert all(v.level is None for v in tried)
    if precision == "bf16":
        assert all(v.lowering.upsample != "conv_transpose" for v in tried)
    small = curated(flavour, precision, part, (2, 2))
    assert all(int(n) <= 4 for name, values in small if name == "attention_chunks" for n in values)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["default", "norm=conv_spread", "attention=exp", "attention_chunks=1"]),
            st.floats(1.0, 3.0),
            st.sampled_from(["ok", "broken", "failed"]),
        ),
        unique_by=lambda row: row[0],
    )
)
def test_the_fastest_that_is_right(rows: list[tuple[str, float, str]]) -> None:
    found = [measured(*row) for row in rows]
    right = {m.variant: m.timing.median_ms for m in found if m.status == "ok"}
    best = fastest(found, DEFAULT)
    if best is None:
        assert right == {}
        return
    assert best.status == "ok"
    least = min(right.values())
    if best.variant == DEFAULT:
        assert right[DEFAULT] * 0.99 <= least
    else:
        assert right[best.variant] == least
        assert DEFAULT not in right or right[DEFAULT] * 0.99 > least
