"""Tiles: they cover, they blend, and a tiled picture stays near the whole one."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_engines import tiny

from qvae_trt.folding import fold
from qvae_trt.runtime import tiling
from qvae_trt.runtime.tiling import Tile, square_tile, starts

tiled = partial(tiling.tiled, scale=8)


@settings(deadline=None)
@given(length=st.integers(1, 2000), tile=st.integers(2, 300), overlap=st.integers(0, 299))
def test_tiles_cover_a_side_in_order_with_the_overlap_asked_for(length, tile, overlap):
    overlap = min(overlap, tile - 1)
    found = starts(length, tile, overlap)
    assert found[0] == 0
    assert found == sorted(set(found))
    if length <= tile:
        assert found == [0]
        return
    assert found[-1] + tile == length
    for before, after in itertools.pairwise(found):
        assert before + tile - after >= overlap
    step = tile - overlap
    assert len(found) <= -(-(length - tile) // step) + 1, "no more tiles than needed"


def scale(part: str, x: torch.Tensor) -> torch.Tensor:
    """Nearest scaling has no neighbourhood, so that blending must give it back."""
    if part == "decoder":
        return x.repeat_interleave(8, 3).repeat_interleave(8, 4)
    return x[..., ::8, ::8]


def test_a_scale_of_sixteen():
    x = torch.randn(1, 3, 1, 20, 30)
    run = partial(torch.nn.functional.interpolate, scale_factor=(1, 16, 16))
    y = tiled(run, x, part="decoder", tile=square_tile(128, 32), scale=16)
    torch.testing.assert_close(y, run(x))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_what_sees_one_place_only_is_exact(part):
    x = torch.randn(1, 3, 1, 35, 50) if part == "decoder" else torch.randn(1, 3, 1, 280, 400)
    tile = Tile(height=128, width=96, overlap_height=32, overlap_width=16)
    y = tiled(lambda x: scale(part, x), x, part=part, tile=tile)
    torch.testing.assert_close(y, scale(part, x), rtol=0, atol=1e-5)
    assert y.dtype == x.dtype


def test_each_axis_has_its_own_overlap():
    pieces = []

    def run(x: torch.Tensor) -> torch.Tensor:
        pieces.append(x.shape)
        return x.repeat_interleave(8, 3).repeat_interleave(8, 4)

    tile = Tile(height=1024, width=128, overlap_height=128, overlap_width=32)
    tiled(run, torch.zeros(1, 4, 1, 32, 64), part="decoder", tile=tile)
    assert pieces == [(1, 4, 1, 32, 16)] * 5


def test_every_tile_has_the_same_size_so_that_one_engine_serves_all():
    seen = set()

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.add(tuple(x.shape))
        return x.repeat_interleave(8, 3).repeat_interleave(8, 4)

    tiled(
        run,
        torch.zeros(1, 4, 1, 37, 51),
        part="decoder",
        tile=square_tile(128, 32),
    )
    assert seen == {(1, 4, 1, 16, 16)}


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_tiles(part, dtype):
    size = (256, 256) if part == "encoder" else (32, 32)

    def run(x: torch.Tensor) -> torch.Tensor:
        return (
            x[..., ::8, ::8]
            if part == "encoder"
            else x.repeat_interleave(8, 3).repeat_interleave(8, 4)
        ).to(dtype)

    y = tiled(run, torch.randn(1, 2, 1, *size), part=part, tile=square_tile(128, 32))
    assert y.dtype == dtype


@pytest.fixture(scope="module")
def scene() -> torch.Tensor:
    """A smooth picture with edges, (1, 3, 1, 256, 384) in [-1, 1]."""
    rows, columns = torch.meshgrid(
        torch.linspace(0, 6, 256), torch.linspace(0, 8, 384), indexing="ij"
    )
    picture = torch.stack([rows.sin(), (rows + columns).cos(), (columns * 2).sin()])
    picture[:, 80:150, 100:220] *= -0.5
    return (picture * 0.8)[None, :, None]


@pytest.fixture(scope="module")
def whole(scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and picture without tiles."""
    vae = fold(tiny().vae)
    latents = vae.encode(scene)[:, :16]
    return latents, vae.decode(latents)


#: The smallest overlap that `PyTorchVae` uses. Tiles are small here, so that attention sees less.
SMALLEST = square_tile(128, 64)
ABUTTING = square_tile(128, 0)


def seam_errors(y: torch.Tensor, whole: torch.Tensor) -> tuple[float, float, float]:
    """PSNR in dB, largest error, and the largest step between neighbours that is not in `whole`."""
    error = y - whole
    psnr = 10 * torch.log10(4 / error.square().mean())
    return float(psnr), float(error.abs().max()), float(error.diff(dim=-1).abs().max())


def test_seams_of_a_decoded_picture_are_bounded(whole):
    # Measured on the bundled VAE: 60.2 dB, 0.029, 0.023; without overlap 38 dB, 0.59, 0.67.
    latents, picture = whole
    decode = fold(tiny().vae).decode
    psnr, largest, step = seam_errors(
        tiled(decode, latents, part="decoder", tile=SMALLEST), picture
    )
    assert psnr > 55
    assert largest < 0.05
    assert step < 0.04
    psnr, largest, step = seam_errors(
        tiled(decode, latents, part="decoder", tile=ABUTTING), picture
    )
    assert psnr < 55
    assert largest > 0.05
    assert step > 0.04, "the bound tells seams"


def test_seams_of_encoded_moments_are_bounded(scene, whole):
    # Measured: 0.006; without overlap 0.19.
    latents, _ = whole
    encode = fold(tiny().vae).encode

    def error(tile: Tile) -> float:
        found = tiled(encode, scene, part="encoder", tile=tile)[:, :16]
        return float((found - latents).norm() / latents.norm())

    assert error(SMALLEST) < 0.01 < error(ABUTTING)


@pytest.mark.parametrize("size", [(255, 383), (249, 256), (256, 377)])
def test_pixels_past_the_last_latent_are_seen(scene, size):
    """Sides that are no multiple of 8: without the last 1 to 7 pixels the last latents are off."""
    encode = fold(tiny().vae).encode
    picture = scene[..., : size[0], : size[1]]
    whole = encode(picture)[:, :16]
    found = tiled(encode, picture, part="encoder", tile=SMALLEST)[:, :16]
    assert found.shape == whole.shape
    assert float((found - whole).norm() / whole.norm()) < 0.01
    for edge in (..., -1, slice(None)), (..., slice(None), -1):
        off = (found - whole)[edge].norm() / whole[edge].norm()
        assert float(off) < 0.02, "0.1 and more where they are not seen"


def test_every_pixel_is_in_a_tile():
    seen = torch.zeros(1, 3, 1, 135, 301)

    def run(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[3] < 64 + 8
        assert x.shape[4] < 64 + 8
        x += 1
        return x[..., 7::8, 7::8]

    tiled(run, seen, part="encoder", tile=square_tile(64, 16))
    assert float(seen.min()) >= 1
