"""The bounds: each is there, each has a reason, and each is what something broken exceeds."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from verify_cases import check

from qvae_trt.profiles import Precision
from qvae_trt.verify import BOUNDS, VerifyReport


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("output", ["images", "mean", "logvar"])
def test_every_bound_is_there_and_no_precision_is_looser_than_a_coarser_one(precision, output):
    bounds = BOUNDS[precision][output]
    coarser = {"fp32": "fp16", "fp16": "bf16", "bf16": None}[precision]
    assert 0 < bounds.relative_l2 < 0.05
    assert 0.99 < bounds.cosine < 1
    assert bounds.psnr_db > 25
    if coarser:
        other = BOUNDS[coarser][output]
        assert bounds.relative_l2 < other.relative_l2
        assert bounds.psnr_db > other.psnr_db
        assert bounds.max_abs < other.max_abs
        assert bounds.bf16_ratio < other.bf16_ratio <= 1.5
    if precision == "fp16":
        assert bounds.bf16_ratio <= 1.0  # the yardstick: no worse than PyTorch in bf16


def test_every_verdict_has_a_reason(image):
    page = VerifyReport(rows=(), facts={}).to_markdown()
    reasons = re.findall(r"^- \*\*(\w+)\*\*: \w", page, re.MULTILINE)
    assert set(reasons) == {verdict.metric for verdict in check(image, image).checks}
