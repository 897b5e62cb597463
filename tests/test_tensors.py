"""Ranges of shapes."""

from __future__ import annotations

import pytest

from qvae_trt.tensors import ShapeRange


@pytest.mark.parametrize(
    ("shape", "refusal"),
    [
        ((1, 8), None),
        ((1, 4), None),
        ((1, 3), "dimension 1 is 3, expected 4..8"),
        ((2, 9), "dimension 0 is 2, expected 1..1; dimension 1 is 9, expected 4..8"),
        ((1,), "1 dimensions, expected 2"),
    ],
)
def test_range(shape: tuple[int, ...], refusal: str | None) -> None:
    assert ShapeRange((1, 4), (1, 5), (1, 8)).refusal(shape) == refusal


def test_fixed_range() -> None:
    fixed = ShapeRange.fixed((1, 2))
    assert fixed.is_fixed
    assert fixed.refusal((1, 3)) is not None
    assert not ShapeRange((1, 4), (1, 5), (1, 8)).is_fixed
