"""What the kinds of VAE differ in, held against diffusers and against each other."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from qvae_trt.errors import ResolutionError
from qvae_trt.kinds import KINDS, QWEN_IMAGE, QWEN_IMAGE_21, Kind, kind_of, scale_of
from qvae_trt.model.seeded import empty_vae
from qvae_trt.profiles import Refusal, Resolution, choose

NONE = Refusal("none", absent=True)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@every_kind
def test_the_description_is_that_of_the_class(kind: Kind) -> None:
    parameters = inspect.signature(getattr(diffusers, kind.class_name)).parameters
    assert {*kind.colours, *kind.most, *kind.flags, *kind.fixed} <= set(parameters)
    vae = empty_vae({}, kind)
    assert kind_of(vae) == kind
    assert (len(vae.config.dim_mult), vae.config.z_dim) == (kind.stages, kind.z_dim)
    assert {vae.config[name] for name in kind.colours} == {kind.default_colours}
    assert scale_of(kind.z_dim) == kind.scale
    assert len(vae.config.temperal_downsample) == kind.stages - 1


def test_a_side_that_is_no_multiple_is_said_with_the_nearest_size() -> None:
    size = Resolution.parse("1000x1200")
    assert QWEN_IMAGE.latents_of(size) == (150, 125)
    with pytest.raises(ResolutionError, match="width is 1000, expected a multiple of 16") as caught:
        QWEN_IMAGE_21.latents_of(size)
    assert caught.value.fix is not None
    assert "992x1200" in caught.value.fix


@every_kind
def test_sizes_are_in_steps_of_the_pipelines_or_of_16(kind: Kind) -> None:
    for size in kind.static_sizes.values():
        kind.latents_of(size)
        assert (
            choose(size, static=NONE, profiles=kind.profiles).engine == "profiles"
            or size.width > 1664
        )
    for profile in kind.profiles:
        for size in (profile.min, profile.opt, profile.max):
            assert size.height % 16 == size.width % 16 == 0


def test_the_static_sizes_of_2_1_are_those_of_its_pipeline_at_2048() -> None:
    module = diffusers.pipelines.qwenimage21.pipeline_qwenimage21
    for aspect, size in QWEN_IMAGE_21.static_sizes.items():
        wide, high = map(int, aspect.split(":"))
        assert (size.width % QWEN_IMAGE_21.step, size.height % QWEN_IMAGE_21.step) == (0, 0)
        width, height, _ = module.calculate_dimensions(2048**2, wide / high)
        assert abs(size.width - width) <= 64
        assert abs(size.height - height) <= 64


def test_nine_profiles_of_2_1_hold_every_size_up_to_2752() -> None:
    profiles = QWEN_IMAGE_21.profiles
    assert len(profiles) == 9
    sides = range(256, 2752 + 1, 16)
    missed = [
        (width, height)
        for width in sides
        for height in sides
        if not any(profile.holds(Resolution(height, width)) for profile in profiles)
    ]
    assert missed == []
    sizes = QWEN_IMAGE_21.static_sizes.values()
    assert all(
        choose(size, static=NONE, profiles=profiles).profile_index in (3, 4, 5) for size in sizes
    )
