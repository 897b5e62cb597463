"""The comparison itself: each metric against a known error, each bound against something broken."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from polygraphy.comparator import IterationResult, PsnrCompareFunc

from qvae_trt.errors import ParityError
from qvae_trt.profiles import PRECISIONS, Profile, Resolution, load_profiles
from qvae_trt.verify import BOUNDS, REASONS, ParityRow, VerifyReport
from qvae_trt.verify.comparison import BoundCheck, compare
from qvae_trt.verify.inputs import PICTURES, picture, sampled_latents
from qvae_trt.verify.reference import Proof, split_outputs
from qvae_trt.verify.report import HEADINGS, cells, explain
from qvae_trt.verify.targets import ends_of, left_out, off_grid, sizes_of

SIZE = Resolution(64, 96)
FP16 = BOUNDS["fp16"]


@pytest.fixture(scope="module")
def image():
    return picture("photograph", SIZE)


def noise(like, scale, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(like.shape)).astype(np.float32)


def check(reference, engine, *, output="images", bounds=FP16, bf16=6e-3):
    """One output, with a yardstick whose error has this standard deviation."""
    yardstick = {output: reference + noise(reference, bf16, seed=1)}
    return compare({output: reference}, yardstick, {output: engine}, bounds)[output]


def broken(comparison):
    return {verdict.metric for verdict in comparison.checks if not verdict.passed}


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


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", PRECISIONS)
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
    assert {verdict.metric for verdict in check(image, image).checks} == set(REASONS)


@pytest.mark.parametrize("precision", PRECISIONS)
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


# --- inputs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", ["96x64", "256x272", "1056x1584"])
def test_pictures_have_structure_in_every_channel(name, channels, size):
    resolution = Resolution.parse(size)
    x = picture(name, resolution, channels=channels)
    assert x.shape == (1, channels, 1, resolution.height, resolution.width)
    assert x.dtype == np.float32
    assert -1 <= x.min() < -0.7
    assert 0.7 < x.max() <= 1
    levels = (x + 1) * 127.5
    assert np.abs(levels - np.rint(levels)).max() < 1e-3
    for a in range(3):
        assert x[:, a].std() > 0.1
        for b in range(a):
            assert np.abs(x[:, a] - x[:, b]).mean() > 0.01
    assert np.array_equal(x, picture(name, resolution, channels=channels))


def test_sampled_latents_follow_the_config():
    z = sampled_latents(Resolution(512, 512), (64, 64), mean=[-1.0, 2.0], std=[0.5, 3.0])
    assert z.shape == (1, 2, 1, 64, 64)
    assert z[0, :, 0].mean(axis=(1, 2)) == pytest.approx([-1.0, 2.0], abs=0.2)
    assert z[0, :, 0].std(axis=(1, 2)) == pytest.approx([0.5, 3.0], rel=0.1)


def test_moments_are_split_and_the_log_variance_clamped():
    moments = np.concatenate([np.full((1, 2, 1, 2, 2), 7.0), np.full((1, 2, 1, 2, 2), -90.0)], 1)
    parts = split_outputs("encoder", moments.astype(np.float32))
    assert parts["mean"].shape == parts["logvar"].shape == (1, 2, 1, 2, 2)
    assert np.all(parts["mean"] == 7)
    assert np.all(parts["logvar"] == -30)


# --- sizes ----------------------------------------------------------------------------------------


def test_every_profile_is_run_at_its_opt_and_once_off_it():
    nine = load_profiles()
    sizes = sizes_of(nine, static=False, every_profile=True)
    assert left_out(nine, sizes) is None
    assert {(p.opt, i) for i, p in enumerate(nine)} <= set(sizes)
    (between,) = {s for s, _ in sizes} - {p.opt for p in nine}
    assert between == off_grid(nine)
    assert between.height % 16 == between.width % 16 == 0
    assert between.height != between.width
    assert any(p.holds(between) for p in nine)
    assert [s.pixels for s, _ in sizes] == sorted(s.pixels for s, _ in sizes)


def test_one_graph_for_all_profiles_is_run_at_its_ends_and_once_between():
    nine = load_profiles()
    compared = sizes_of(nine, static=False, every_profile=False)
    assert left_out(nine, compared) == "2 of 9 opts checked, since one graph serves all"
    sizes = [s for s, _ in compared]
    opts = sorted((p.opt for p in nine), key=lambda r: r.pixels)
    assert sizes == [off_grid(nine), opts[0], opts[-1]]


def test_each_range_is_tried_at_the_ends_that_are_not_compared():
    nine = load_profiles()
    compared = sizes_of(nine, static=False, every_profile=True)
    ends = ends_of(nine, every_profile=True, besides=compared)
    every = {(end, index) for index, p in enumerate(nine) for end in (p.min, p.max)}
    assert set(ends) == every - set(compared)
    of_one_graph = ends_of(nine, every_profile=False, besides=())
    assert [end for end, _ in of_one_graph] == [
        min((p.min for p in nine), key=lambda size: size.pixels),
        max((p.max for p in nine), key=lambda size: size.pixels),
    ]


def test_sizes_asked_for_are_those_that_the_engine_holds():
    nine = load_profiles()
    asked = [Resolution(512, 512), Resolution(4096, 4096), Resolution(1088, 1920)]
    found = sizes_of(nine, static=False, asked=asked, every_profile=True)
    assert [s for s, _ in found] == [asked[0], asked[2]]
    assert found[1][1] == 4
    fixed = (Profile.fixed(Resolution(928, 1664)),)
    assert sizes_of(fixed, static=True, asked=asked, every_profile=True) == []
    assert sizes_of(fixed, static=True, every_profile=True) == [(Resolution(928, 1664), 0)]


def test_a_fixed_profile_has_no_size_between():
    assert off_grid([Profile.fixed(Resolution(512, 512))]) is None


# --- report ---------------------------------------------------------------------------------------


def row(status, comparison=None, reason="", fix=None):
    return ParityRow(
        engine="static/1664x928/vae_decoder.onnx",
        part="decoder",
        mode="static",
        status=status,
        reason=reason,
        flavour="onnxruntime",
        precision="fp16",
        resolution=SIZE,
        input="encoded",
        output="images",
        comparison=comparison,
        fix=fix,
    )


@pytest.mark.parametrize(
    ("statuses", "ok"),
    [
        (["passed"], True),
        (["passed", "not run"], True),
        (["not run"], False),
        ([], False),
        (["passed", "broken"], False),
        (["passed", "error"], False),
    ],
)
def test_ok_needs_something_that_ran_and_nothing_broken(statuses, ok):
    report = VerifyReport(
        rows=tuple(row(s, reason="because", fix="qvae build") for s in statuses), facts={}
    )
    assert report.ok is ok
    if ok:
        report.require()
    else:
        with pytest.raises(ParityError) as caught:
            report.require()
        assert caught.value.fix


def test_the_report_is_json_even_where_numbers_are_not(image):
    engine = image.copy()
    engine[0, 0, 0, 0, 0] = math.nan
    rows = (row("broken", check(image, engine), "x"), row("passed", check(image, image.copy())))
    report = VerifyReport(rows=rows, facts={"torch": "2"}, proof=Proof(1e-6, 1.0))
    text = json.dumps(report.to_dict(), allow_nan=False)
    first, second = json.loads(text)["rows"]
    assert first["relative_l2"] is None
    assert first["nans"] == 1
    assert second["psnr_db"] == "inf"
    assert second["verdicts"][0] == {"metric": "finite", "value": 0.0, "bound": 0.0, "passed": True}
    assert json.loads(text)["bounds"]["fp16"]["images"]["bf16_ratio"] == FP16["images"].bf16_ratio


def test_markdown_has_every_row_and_every_bound_with_its_reason(image, tmp_path):
    rows = (
        row("passed", check(image, image + noise(image, 1e-3))),
        row("not run", reason="no GPU"),
    )
    report = VerifyReport(rows=rows, facts={"torch": "2"}, proof=Proof(1e-6, 1.0))
    report.write_markdown(tmp_path / "new" / "parity.md")
    text = (tmp_path / "new" / "parity.md").read_text()
    assert "not run: no GPU" in text
    assert "96x64" in text
    for name, reason in REASONS.items():
        assert f"- **{name}**: {reason}" in text
    for precision in PRECISIONS:
        assert text.count(f"| {precision} |") == 3
    assert {len(cells(row.to_dict())) for row in rows} == {len(HEADINGS)}


@pytest.mark.parametrize(
    ("metric", "value", "bound", "said"),
    [
        ("cosine", 0.99996113, 0.99997, "cosine is 0.99996, expected at least 0.99997"),
        (
            "relative_l2",
            0.0075000004,
            0.0075,
            "relative_l2 is 0.0075000004, expected at most 0.0075",
        ),
        ("psnr_db", 54.741, 55, "psnr_db is 54.74, expected at least 55"),
        ("max_abs", math.nan, 0.04, "max_abs is nan, expected at most 0.04"),
    ],
)
def test_a_value_past_its_bound_is_not_rounded_to_it(metric, value, bound, said):
    assert explain([BoundCheck(metric, value, bound, passed=False)]) == said
