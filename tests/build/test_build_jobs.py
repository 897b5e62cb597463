"""What is to be built, and under which names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvae_trt.build import Job, JobResult, plan_profiles, plan_static
from qvae_trt.errors import BuildError, UsageError
from qvae_trt.model import load_model
from qvae_trt.profiles import Profile, Resolution, load_profiles, load_static_sizes
from qvae_trt.tensors import ShapeRange

DIR = Path("engines")
WIDE, OTHER = Resolution(928, 1664), Resolution(768, 1280)


def test_all_seven_sizes() -> None:
    jobs = plan_static(DIR, load_static_sizes().values())
    assert len(jobs) == 14
    assert len({job.path for job in jobs}) == 14
    first = jobs[0]
    assert first.path == DIR / "static/1664x928/vae_encoder.trt"
    assert (first.resolution, first.profiles) == (WIDE, (Profile.fixed(WIDE),))
    assert first.title == "encoder 1664x928"


def test_a_size_that_the_user_asks_for() -> None:
    (job,) = plan_static(DIR, [OTHER], ["decoder"], ".onnx")
    assert job.path == DIR / "static/1280x768/vae_decoder.onnx"


def test_a_size_given_twice_is_built_once() -> None:
    assert len(plan_static(DIR, [OTHER, WIDE, OTHER], ["decoder", "decoder"])) == 2


def test_profiles() -> None:
    encoder, decoder = plan_profiles(DIR, load_profiles())
    assert encoder.path == DIR / "profiles/vae_encoder_multi_profile.trt"
    assert decoder.path == DIR / "profiles/vae_decoder_multi_profile.trt"
    assert decoder.profiles == load_profiles()
    assert decoder.resolution is None
    assert decoder.title == "decoder, 9 profiles"


def test_nothing_to_build() -> None:
    with pytest.raises(UsageError, match="nothing to build"):
        plan_static(DIR, [])
    with pytest.raises(UsageError, match="nothing to build"):
        plan_profiles(DIR, load_profiles(), [])
    with pytest.raises(UsageError, match="nothing to build"):
        plan_profiles(DIR, [])


def test_shapes_are_those_of_the_contract() -> None:
    encoder, decoder = plan_static(DIR, [WIDE])
    model = load_model("bundled:tiny")
    assert encoder.ranges(model) == (ShapeRange.fixed((1, 3, 1, 928, 1664)),)
    assert decoder.ranges(model) == (ShapeRange.fixed((1, 16, 1, 116, 208)),)
    profile = Profile(Resolution(256, 320), Resolution(512, 640), Resolution(1024, 1280))
    job = Job(DIR / "x.trt", "decoder", "profiles", profiles=(profile,))
    assert job.ranges(model) == (
        ShapeRange((1, 16, 1, 32, 40), (1, 16, 1, 64, 80), (1, 16, 1, 128, 160)),
    )


def test_results_as_json() -> None:
    (job,) = plan_static(DIR, [OTHER], ["decoder"])
    failure = BuildError("no kernel", fix="--level 2")
    result = JobResult(job, "failed", failure.what, error=failure)
    data = json.loads(json.dumps(result.to_dict()))
    assert data["engine"] == "engines/static/1280x768/vae_decoder.trt"
    assert (data["status"], data["reason"], data["fix"]) == ("failed", "no kernel", "--level 2")
    assert data["profiles"] == [{"min": "1280x768", "opt": "1280x768", "max": "1280x768"}]
