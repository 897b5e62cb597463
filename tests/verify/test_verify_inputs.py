"""The inputs: pictures with structure in every channel, latents from the configuration."""

from __future__ import annotations

import numpy as np
import pytest

from qvae_trt.profiles import Resolution
from qvae_trt.verify.inputs import PICTURES, picture, sampled_latents


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
