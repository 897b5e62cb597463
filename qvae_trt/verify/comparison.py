"""Polygraphy's comparators over the project's engines and PyTorch.

Polygraphy takes the peak of its PSNR from the largest value of the reference (6 dB low for images
in [-1, 1]), and its L2 is absolute. Both are put right through its own thresholds: the threshold is
moved by the difference between its peak and the true range, and the value shown is moved back. The
verdicts stay Polygraphy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from polygraphy import comparator
from polygraphy.logger import G_LOGGER

from qvae_trt.verify.bounds import IMAGE_RANGE, Bounds, Output

if TYPE_CHECKING:
    from qvae_trt.verify.inputs import Array
    from qvae_trt.verify.reference import Outputs


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far a result is from the reference. `max_abs` in the tensor's own units."""

    psnr_db: float
    cosine: float
    relative_l2: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class BoundCheck:
    """One bound: what was seen, what was asked, and whether it holds."""

    metric: str
    value: float
    bound: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One output of one engine on one input."""

    metrics: Metrics
    yardstick: Metrics
    bf16_ratio: float
    nans: int
    infs: int
    checks: tuple[BoundCheck, ...]

    @property
    def power(self) -> float:
        return next(check.value for check in self.checks if check.metric == "power")

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


def compare(
    reference: Outputs, yardstick: Outputs, engine: Outputs, bounds: Mapping[Output, Bounds]
) -> dict[Output, Comparison]:
    """Each output of an engine against the reference, and against PyTorch bf16's error.

    Args:
        reference, yardstick, engine: outputs of the same input; one key each of `bounds`.

    Returns: a comparison for each output. Another shape breaks every bound.
    """
    found: dict[Output, Comparison] = {}
    for name, expected in reference.items():
        limit, value = bounds[name], engine[name]
        scale = _Scale.of(name, expected, limit)
        bf16, _ = _measure(expected, yardstick[name], scale, limit, is_engine=False)
        metrics, checks = _measure(expected, value, scale, limit, is_engine=True)
        ratio = _ratio(metrics.relative_l2, bf16.relative_l2)
        nans, infs = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        power = _power(expected, scale, limit, bf16)
        found[name] = Comparison(
            metrics=metrics,
            yardstick=bf16,
            bf16_ratio=ratio,
            nans=nans,
            infs=infs,
            checks=(
                BoundCheck("finite", float(nans + infs), 0.0, nans + infs == 0),
                *checks,
                BoundCheck("bf16_ratio", ratio, limit.bf16_ratio, ratio <= limit.bf16_ratio),
                BoundCheck("power", power, 1.0, power > 1.0),
            ),
        )
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """The reference's own size, which the relative metrics are measured by.

    Attributes:
        psnr_shift_db: what Polygraphy's PSNR lacks: its peak is the largest value, not the range.
        max_abs: the bound of the largest difference, in the tensor's own units.
    """

    norm: float
    range: float
    psnr_shift_db: float
    max_abs: float

    @classmethod
    def of(cls, name: Output, value: Array, limit: Bounds) -> _Scale:
        top, bottom = float(value.max()), float(value.min())
        span = IMAGE_RANGE if name == "images" else max(top - bottom, 1e-12)
        return cls(
            norm=float(np.linalg.norm(value.astype(np.float64))),
            range=span,
            psnr_shift_db=20.0 * math.log10(span / (top if top > 0 else 1.0)),
            max_abs=limit.max_abs * (1.0 if name == "images" else span),
        )


def _measure(
    reference: Array, other: Array, scale: _Scale, limit: Bounds, *, is_engine: bool
) -> tuple[Metrics, list[BoundCheck]]:
    """The distance of a result from the reference, and whether it keeps the bounds."""
    first, second = (comparator.IterationResult({"y": value}, 0.0) for value in (reference, other))
    functions = [
        comparator.PsnrCompareFunc(limit.psnr_db - scale.psnr_shift_db),
        comparator.CosineSimilarityCompareFunc(limit.cosine),
        comparator.L2CompareFunc(limit.relative_l2 * scale.norm),
    ]
    if is_engine:  # it takes ten times as long as the others, and the yardstick needs no verdict
        # With rtol = 0 the absolute tolerance decides alone: Polygraphy fails what exceeds both.
        functions.append(
            comparator.SimpleCompareFunc(atol=scale.max_abs, rtol=0.0, check_error_stat="max")
        )
    # Polygraphy logs to stdout, which is for results.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        results = [function(first, second).get("y", False) for function in functions]
    psnr, cosine, l2, *simple = results
    metrics = Metrics(
        psnr_db=getattr(psnr, "psnr", -math.inf) + scale.psnr_shift_db,
        cosine=getattr(cosine, "cosine_similarity", math.nan),
        relative_l2=_ratio(getattr(l2, "l2_norm", math.inf), scale.norm),
        max_abs=getattr(simple[0], "max_absdiff", math.inf)
        if simple
        else float(np.abs(other - reference).max()),
    )
    bounds = asdict(limit) | {"max_abs": scale.max_abs}
    checks = [
        BoundCheck(name, value, bounds[name], bool(result))
        for (name, value), result in zip(asdict(metrics).items(), results, strict=False)
    ]
    return metrics, checks


def _power(reference: Array, scale: _Scale, limit: Bounds, bf16: Metrics) -> float:
    """How surely a shift by one pixel and a swap of two channels would be rejected on this very
    output.

    The smaller of the two errors over the largest error that the bounds let pass. At 1 or below,
    the output is so flat that the bounds prove nothing, and the row fails.
    """
    swapped = reference.copy()
    swapped[:, [0, 1]] = swapped[:, [1, 0]]
    others = [swapped]
    if reference.shape[-1] > 1:  # what is one wide looks the same, shifted
        others.append(np.roll(reference, 1, axis=-1))
    error = min(float(np.linalg.norm(other - reference)) for other in others)
    passing = min(
        limit.relative_l2 * scale.norm,
        scale.range * 10.0 ** (-limit.psnr_db / 20.0) * math.sqrt(reference.size),
        limit.bf16_ratio * bf16.relative_l2 * scale.norm,
    )
    return _ratio(error, passing)


def _ratio(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return a / b if b else (0.0 if a == 0 else math.inf)
