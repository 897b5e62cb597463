"""Polygraphy's comparators over the project's engines and PyTorch.

Polygraphy takes the peak of its PSNR from the largest value of the first output (6 dB low for
images in [-1, 1], and the wrong one if the broken output came first), and its L2 is absolute.
Both are put right through its own thresholds: the reference always comes first, the threshold is
moved by the difference between its peak and the true range, and the value shown is moved back. The
verdicts stay Polygraphy's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    IterationResult,
    L2CompareFunc,
    PsnrCompareFunc,
    RunResults,
    SimpleCompareFunc,
)
from polygraphy.logger import G_LOGGER

from qvae_trt.verify.bounds import IMAGE_RANGE, Bounds, Output
from qvae_trt.verify.inputs import Array
from qvae_trt.verify.reference import Outputs

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Infer = Callable[[Array], Outputs]

FP32, BF16, ENGINE = "PyTorch fp32", "PyTorch bf16", "engine"


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
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


class _Runner(BaseRunner):
    """A Polygraphy runner of a function from one array to named arrays."""

    def __init__(self, name: str, metadata: TensorMetadata, infer: Infer) -> None:
        super().__init__(name=name)
        self._metadata = metadata
        self._infer = infer

    def get_input_metadata_impl(self) -> TensorMetadata:
        return self._metadata

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> Outputs:
        start = time.perf_counter()
        (x,) = feed_dict.values()
        outputs = self._infer(x)
        self.inference_time = time.perf_counter() - start
        return outputs


def run(name: str, x: Array, infer: Infer, *, input_name: str = "x") -> Outputs:
    """What a function makes of one input, through `Comparator.run`.

    Args:
        name: shown in Polygraphy's log.
        x: (1, C, 1, H, W) fp32.
        infer: from such an array to the outputs in fp32.
    """
    shape = (*x.shape[:3], None, None)
    metadata = TensorMetadata().add(input_name, dtype=np.float32, shape=shape)
    runner = _Runner(name, metadata, infer)
    with _quiet():
        results = Comparator.run([runner], data_loader=[{input_name: x}])
    return dict(results[runner.name][0].items())


def compare(
    reference: Outputs, yardstick: Outputs, engine: Outputs, bounds: Mapping[Output, Bounds]
) -> dict[Output, Comparison]:
    """Each output of an engine against the reference, and against PyTorch bf16's error.

    Args:
        reference, yardstick, engine: outputs of the same input; one key each of `bounds`.

    Returns: a comparison for each output of the reference. A missing output or another shape
    breaks every bound.
    """
    scales = {name: _Scale.of(name, value) for name, value in reference.items()}
    limits = {name: bounds[name] for name in reference}
    measured = _metrics(reference, engine, scales, limits)
    found: dict[Output, Comparison] = {}
    for name, scale in scales.items():
        bf16 = _plain_metrics(name, reference[name], yardstick[name], scale)
        metrics, checks = measured[name]
        ratio = _ratio(metrics.relative_l2, bf16.relative_l2)
        limit = limits[name]
        nans, infs = int(np.isnan(engine[name]).sum()), int(np.isinf(engine[name]).sum())
        power = _power(reference[name], scale, limit, bf16)
        found[name] = Comparison(
            metrics=metrics,
            yardstick=bf16,
            bf16_ratio=ratio,
            nans=nans,
            infs=infs,
            checks=(
                BoundCheck("finite", float(nans + infs), 0.0, _finite(name, engine[name])),
                *checks,
                BoundCheck("bf16_ratio", ratio, limit.bf16_ratio, ratio <= limit.bf16_ratio),
                BoundCheck("power", power, 1.0, power > 1.0),
            ),
        )
    return found


@dataclass(frozen=True, slots=True)
class _Scale:
    """The reference's own size, which the relative metrics are measured by."""

    norm: float
    range: float
    polygraphy_peak: float
    size: int

    @classmethod
    def of(cls, name: Output, value: Array) -> _Scale:
        top, bottom = float(value.max()), float(value.min())
        return cls(
            norm=float(np.linalg.norm(value.astype(np.float64))),
            range=IMAGE_RANGE if name == "images" else max(top - bottom, 1e-12),
            polygraphy_peak=top if top > 0 else 1.0,
            size=value.size,
        )

    @property
    def psnr_shift_db(self) -> float:
        """What Polygraphy's PSNR lacks: its peak is the largest value, not the range."""
        return 20.0 * math.log10(self.range / self.polygraphy_peak)

    def max_abs_bound(self, name: Output, bound: float) -> float:
        return bound if name == "images" else bound * self.range


def _metrics(
    reference: Outputs,
    other: Outputs,
    scales: Mapping[Output, _Scale],
    limits: Mapping[Output, Bounds],
) -> dict[Output, tuple[Metrics, tuple[BoundCheck, ...]]]:
    atol = {name: scales[name].max_abs_bound(name, limits[name].max_abs) for name in scales}
    functions = (
        PsnrCompareFunc({n: limits[n].psnr_db - scales[n].psnr_shift_db for n in scales}),
        CosineSimilarityCompareFunc({n: limits[n].cosine for n in scales}),
        L2CompareFunc({n: limits[n].relative_l2 * scales[n].norm for n in scales}),
        # With rtol = 0 the absolute tolerance decides alone: Polygraphy fails what exceeds both.
        SimpleCompareFunc(atol=atol, rtol=0.0, check_error_stat="max"),
    )
    results = RunResults()
    results.append((FP32, [IterationResult(reference, 0.0, FP32)]))
    results.append((ENGINE, [IterationResult(other, 0.0, ENGINE)]))
    with _quiet(), np.errstate(all="ignore"):
        accuracy = Comparator.compare_accuracy(results, compare_func=list(functions))
    rows = [result[FP32, ENGINE][0] for result in accuracy]
    found: dict[Output, tuple[Metrics, tuple[BoundCheck, ...]]] = {}
    for name, scale in scales.items():
        psnr, cosine, l2, largest = (row.get(name, False) for row in rows)
        metrics = Metrics(
            psnr_db=getattr(psnr, "psnr", -math.inf) + scale.psnr_shift_db,
            cosine=getattr(cosine, "cosine_similarity", math.nan),
            relative_l2=_ratio(getattr(l2, "l2_norm", math.inf), scale.norm),
            max_abs=getattr(largest, "max_absdiff", math.inf),
        )
        limit = limits[name]
        checks = (
            BoundCheck("psnr_db", metrics.psnr_db, limit.psnr_db, bool(psnr)),
            BoundCheck("cosine", metrics.cosine, limit.cosine, bool(cosine)),
            BoundCheck("relative_l2", metrics.relative_l2, limit.relative_l2, bool(l2)),
            BoundCheck("max_abs", metrics.max_abs, atol[name], bool(largest)),
        )
        found[name] = (metrics, checks)
    return found


def _plain_metrics(name: Output, reference: Array, other: Array, scale: _Scale) -> Metrics:
    """The same metrics with no bounds, for the yardstick, which is no engine."""
    first = IterationResult({name: reference}, 0.0, FP32)
    second = IterationResult({name: other}, 0.0, BF16)
    functions = (PsnrCompareFunc(0.0), CosineSimilarityCompareFunc(0.0), L2CompareFunc(0.0))
    with _quiet(), np.errstate(all="ignore"):
        psnr, cosine, l2 = (function(first, second)[name] for function in functions)
    return Metrics(
        psnr_db=psnr.psnr + scale.psnr_shift_db,
        cosine=cosine.cosine_similarity,
        relative_l2=_ratio(l2.l2_norm, scale.norm),
        max_abs=float(np.abs(other - reference).max()),
    )


def _finite(name: Output, value: Array) -> bool:
    results = RunResults()
    results.append((ENGINE, [IterationResult({name: value}, 0.0, ENGINE)]))
    with _quiet(), np.errstate(all="ignore"):
        return bool(Comparator.validate(results, check_inf=True, check_nan=True))


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
        scale.range * 10.0 ** (-limit.psnr_db / 20.0) * math.sqrt(scale.size),
        limit.bf16_ratio * bf16.relative_l2 * scale.norm,
    )
    return _ratio(error, passing)


def _ratio(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return a / b if b else (0.0 if a == 0 else math.inf)


def _quiet() -> AbstractContextManager[object]:
    """Polygraphy logs to stdout, which is for results."""
    quiet: AbstractContextManager[object] = G_LOGGER.verbosity(G_LOGGER.CRITICAL)
    return quiet
