"""Engines and PyTorch in bf16 against PyTorch in fp32, by Polygraphy's comparators.

Polygraphy takes the peak of its PSNR from the largest value of the reference (6 dB low for images
in [-1, 1]), and its L2 is absolute: both are put right here.

The parity bounds are as `data/bounds.toml` has them. Images are compared in [-1, 1]; moments as the
two tensors they are, mean and log-variance, since the larger of two joined tensors would hide an
error in the smaller. Where a bound depends on a scale, the scale is the reference's: `PSNR` takes
2.0 as the range of images, and the reference's max - min for moments; `relative_l2` divides by the
reference's norm; `max_abs` of moments is a share of that range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from polygraphy import comparator
from polygraphy.logger import G_LOGGER

from qvae_trt.files.values import read_toml
from qvae_trt.json_rows import read
from qvae_trt.profiles import Precision
from qvae_trt.verify.inputs import Array, Output
from qvae_trt.verify.reference import Outputs

#: The data range of images in [-1, 1], and so the peak of their PSNR.
IMAGE_RANGE = 2.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far a result is from the reference. `max_abs` in the tensor's own units."""

    psnr_db: float
    cosine: float
    relative_l2: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class Bounds(Metrics):
    """What an engine of one precision may differ by, on one of its outputs.

    Attributes:
        psnr_db: at least, with the range as above.
        cosine: at least.
        relative_l2: at most, ||engine - reference|| / ||reference||.
        max_abs: at most, the largest difference: in image units, or as a share of the moments'
            range.
        bf16_ratio: at most, ||engine - reference|| / ||PyTorch bf16 - reference|| on the same
            input.
    """

    bf16_ratio: float


_FILE = Path(__file__).resolve().parent.parent / "data" / "bounds.toml"
BOUNDS: dict[Precision, dict[Output, Bounds]] = read(
    Mapping[Precision, Mapping[Output, Bounds]], read_toml(_FILE), strict=True
)
#: The metrics whose bound is the least that is allowed; of the others it is the most.
AT_LEAST = ("psnr_db", "cosine", "power")


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
        span, norm = _span(name, expected), float(np.linalg.norm(expected.astype(np.float64)))
        results = (yardstick[name], value)
        bf16, metrics = (_measure(expected, result, span, norm) for result in results)
        ratio = _ratio(metrics.relative_l2, bf16.relative_l2)
        nans, infs = int(np.isnan(value).sum()), int(np.isinf(value).sum())
        measured = {"finite": float(nans + infs), **asdict(metrics), "bf16_ratio": ratio}
        measured["power"] = _power(expected, span, norm, limit, bf16)
        asked = {"finite": 0.0, **asdict(limit), "power": 1.0}
        asked["max_abs"] = limit.max_abs * (1.0 if name == "images" else span)
        checks = []
        for metric, seen in measured.items():
            bound = asked[metric]
            passed = seen >= bound if metric in AT_LEAST else seen <= bound
            if metric == "power":  # at 1 the bounds prove nothing yet
                passed = seen > bound
            checks.append(BoundCheck(metric, seen, bound, passed))
        found[name] = Comparison(metrics, bf16, ratio, nans, infs, tuple(checks))
    return found


def _span(name: Output, value: Array) -> float:
    """From the least to the largest value of the reference, which its PSNR is relative to."""
    return IMAGE_RANGE if name == "images" else max(float(value.max()) - float(value.min()), 1e-12)


def _measure(reference: Array, other: Array, span: float, norm: float) -> Metrics:
    """The distance of a result from the reference, whose span and L2 norm are given."""
    if other.shape != reference.shape:
        return Metrics(-math.inf, math.nan, math.inf, math.inf)
    first, second = (comparator.IterationResult({"y": value}, 0.0) for value in (reference, other))
    top = float(reference.max())  # the peak of Polygraphy's PSNR
    # Polygraphy logs to stdout, which is for results.
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(all="ignore"):
        psnr = comparator.PsnrCompareFunc()(first, second)["y"].psnr
        cosine = comparator.CosineSimilarityCompareFunc()(first, second)["y"].cosine_similarity
        l2 = comparator.L2CompareFunc()(first, second)["y"].l2_norm
        return Metrics(
            psnr_db=psnr + 20.0 * math.log10(span / (top if top > 0 else 1.0)),
            cosine=cosine,
            relative_l2=_ratio(l2, norm),
            max_abs=float(np.abs(other - reference).max()),
        )


def _power(reference: Array, span: float, norm: float, limit: Bounds, bf16: Metrics) -> float:
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
        limit.relative_l2 * norm,
        span * 10.0 ** (-limit.psnr_db / 20.0) * math.sqrt(reference.size),
        limit.bf16_ratio * bf16.relative_l2 * norm,
    )
    return _ratio(error, passing)


def _ratio(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return a / b if b else (0.0 if a == 0 else math.inf)
