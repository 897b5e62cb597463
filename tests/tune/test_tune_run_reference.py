"""The reference that a variant is judged by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tune_cases import SIZE

from qvae_trt.model import load_model
from qvae_trt.profiles import PARTS
from qvae_trt.tune.record import Parity
from qvae_trt.tune.run import FoldedReference


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_engine_is_seen(part: Any) -> None:
    reference = FoldedReference(load_model("bundled:tiny"), part, SIZE)
    assert len(reference.inputs) == 2
    names = list(reference.inputs)
    right = [
        np.concatenate(list(reference.fp32[name].values()), axis=1).astype(np.float32)
        for name in names
    ]

    def check(arrays: list[np.ndarray]) -> tuple[Parity, str]:
        return reference.check(arrays, "fp16")

    assert check(right)[1] == ""
    # Wrong on the second input alone, by one pixel, by a little, by one number.
    assert "relative_l2" in check([right[0], np.roll(right[1], 1, -1)])[1]
    noise = np.random.default_rng(0).standard_normal(right[0].shape).astype(np.float32)
    parity, words = check([right[0] + 0.05 * noise, right[1]])
    assert names[0] in words
    assert parity.relative_l2 is not None
    assert parity.relative_l2 > 1e-3
    holed = right[1].copy()
    holed[0, 0, 0, 3, 4] = np.nan
    parity, words = check([right[0], holed])
    assert "finite" in words
    assert parity.relative_l2 is None
