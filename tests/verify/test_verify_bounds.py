"""The comparison itself: each metric against a known error, each bound against something broken."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, PsnrCompareFunc
from verify_cases import FP16, broken, check, noise

from qvae_trt.profiles import Precision
from qvae_trt.verify import BOUNDS
from qvae_trt.verify.bounds import compare
from qvae_trt.verify.report import explain

# --- metrics --------------------------------------------------------------------------------------


def test_metrics_of_a_known_error(image):
    error = noise(image, 1e-3)
    found = check(image, image + error)
    rms = float(np.sqrt(np.mean(error.astype(np.float64) ** 2)))
    norm = float(np.linalg.norm(image))
    assert found.metrics.psnr_db == pytest.approx(20 * math.log10(2 / rms), abs=0.01)
    assert found.metrics.relative_l2 == pytest.approx(np.linalg.norm(error) / norm, rel=1e-3)
    assert found.metrics.max_abs == pytest.approx(float(np.abs(error).max()), rel=1e-3)
    assert found.metrics.cosine == pytest.approx(1 - found.metrics.relative_l2**2 / 2, abs=1e-6)
    assert found.bf16_ratio == pytest.approx(1 / 6, rel=0.02)
    assert not broken(found)


def test_polygraphys_own_psnr_has_another_peak_and_the_verdict_is_moved_with_it(image):
    dim = image * 0.25  # its largest value is 0.25: Polygraphy's peak, 18 dB under the range of 2
    engine = dim + noise(dim, 3e-3)
    raw = PsnrCompareFunc(0.0)(
        IterationResult({"images": dim}), IterationResult({"images": engine})
    )["images"].psnr
    found = check(dim, engine, bf16=1.0)
    assert found.metrics.psnr_db - raw == pytest.approx(20 * math.log10(2 / dim.max()), abs=0.01)
    assert found.metrics.psnr_db == pytest.approx(56.5, abs=0.2)
    assert raw < FP16["images"].psnr_db < found.metrics.psnr_db
    assert "psnr_db" not in broken(found)
    assert "psnr_db" in broken(check(dim, dim + noise(dim, 3.8e-3), bf16=1.0))


def test_moments_are_measured_over_their_own_range():
    latent = noise(np.empty((1, 16, 1, 8, 12)), 0.5)
    offset = latent - 20.0  # a log-variance: the offset makes its norm 40 times larger
    error = noise(latent, 3e-2, seed=3)
    span = float(offset.max() - offset.min())
    found = check(offset, offset + error, output="logvar", bf16=1.0)
    rms = float(np.sqrt(np.mean(error**2)))
    assert found.metrics.psnr_db == pytest.approx(20 * math.log10(span / rms), abs=0.01)
    assert found.metrics.relative_l2 < FP16["logvar"].relative_l2
    assert "psnr_db" in broken(found)


def test_an_exact_result_is_perfect(image):
    found = check(image, image.copy())
    assert found.metrics.psnr_db == math.inf
    assert found.metrics.relative_l2 == found.metrics.max_abs == found.bf16_ratio == 0.0
    assert not broken(found)


@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize(
    "fault",
    {
        "shift by one pixel": lambda y: np.roll(y, 1, axis=-1),
        "shift by one row": lambda y: np.roll(y, 1, axis=-2),
        "swapped channels": lambda y: y[:, [1, 0, *range(2, y.shape[1])]],
        "swapped last channels": lambda y: y[:, [*range(y.shape[1] - 2), -1, -2]],
        "flipped": lambda y: y[..., ::-1],
        "black": np.zeros_like,
        "one level brighter in 20": lambda y: y * 1.05,
        "half contrast": lambda y: y / 2,
        "noise": lambda y: y + noise(y, 0.1),
        "one bad tile": lambda y: _with_tile(y),
        "a seam": lambda y: _with_seam(y),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_broken_picture_is_rejected(image, precision, fault):
    found = check(image, np.ascontiguousarray(fault[1](image)), bounds=BOUNDS[precision])
    assert not found.passed, explain(found.checks)


def _with_tile(y):
    y = y.copy()
    y[..., :8, :8] = y[..., 32:40, 40:48]
    return y


def _with_seam(y):
    y = y.copy()
    y[..., :, 48] = y[..., :, 40]
    return y


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_single_pixel_that_is_not_finite_is_rejected(image, bad):
    engine = image.copy()
    engine[0, 1, 0, 5, 7] = bad
    found = check(image, engine)
    assert "finite" in broken(found)
    assert (found.nans, found.infs) == ((1, 0) if math.isnan(bad) else (0, 1))


def test_a_single_wrong_pixel_is_rejected_by_the_largest_error_alone(image):
    engine = image.copy()
    engine[0, 0, 0, 3, 3] += 0.06
    assert broken(check(image, engine)) == {"max_abs"}


def test_an_fp16_engine_no_better_than_bf16_is_rejected_by_the_yardstick_alone(image):
    engine = image + noise(image, 1e-3)
    assert not broken(check(image, engine, bf16=6e-3))
    assert broken(check(image, engine, bf16=1.1e-3)) == {"bf16_ratio"}


def test_another_shape_is_rejected(image):
    yardstick = {"images": image + noise(image, 6e-3)}
    found = compare({"images": image}, yardstick, {"images": image[..., :-8]}, FP16)["images"]
    assert {"psnr_db", "cosine", "relative_l2", "max_abs", "bf16_ratio"} <= broken(found)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_flat_output_proves_nothing(value):
    flat = np.full((1, 3, 1, 16, 16), value, np.float32)
    assert broken(check(flat, flat.copy())) == {"power"}


@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (1, 3, 1, 16, 1)])
def test_what_is_one_wide_is_not_probed_with_a_shift(shape):
    narrow = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    assert not broken(check(narrow, narrow.copy()))


# --- report ---------------------------------------------------------------------------------------
