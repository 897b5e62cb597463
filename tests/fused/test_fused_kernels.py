"""Each kernel against the plain PyTorch of the same name: all widths, ragged sizes, NaN."""

from __future__ import annotations

import plain_kernels as plain
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be interpreted")

from qvae_trt.fused import attention, kernels
from qvae_trt.fused.network import Copied, Means, head_weight, like, stem_weight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Of bundled:tiny, of the full network, of Qwen-Image-2.1, and one that is no multiple of anything.
WIDTHS = [16, 64, 96, 144, 192, 384, 12]
#: (frames, repeats) of the shortcuts of Qwen-Image-2.1's decoder, and of none of them.
COPIES = [(2, 8), (2, 4), (1, 2), (2, 16)]
#: (side, frames, group) of those of its encoder, and of none of them.
MEANS = [(2, 1, 4), (2, 2, 4), (2, 2, 8), (2, 1, 2), (1, 1, 2)]


def picture(channels: int, height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((1, channels, height, width), generator=generator)
    return x.to(DEVICE).to(memory_format=torch.channels_last)


def vector(channels: int, *, seed: int) -> torch.Tensor:
    return torch.randn(channels, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("silu", [True, False])
def test_sum_norm(channels, silu):
    x, residual = picture(channels, 5, 7), picture(channels, 5, 7, seed=1)
    bias, gain = vector(channels, seed=2), vector(channels, seed=3)
    results = []
    for module in (kernels, plain):
        total, out = like(x), like(x)
        module.sum_norm(x, bias, gain, residual=residual, total=total, out=out, silu=silu)
        results.append((total, out))
    for found, expected in zip(*results, strict=True):
        close(found, expected)


@pytest.mark.parametrize("channels", [16, 96])
def test_sum_norm_in_place_and_of_rows_that_are_apart(channels):
    whole = picture(channels, 6, 5)
    bias, gain = vector(channels, seed=2), vector(channels, seed=3)
    part = whole[:, :, 1:, 1:]
    found, expected = like(part), like(part)
    kernels.sum_norm(part, bias, gain, out=found)
    plain.sum_norm(part, bias, gain, out=expected)
    close(found, expected)
    expected = like(whole)
    plain.sum_norm(whole, bias, gain, out=expected)
    kernels.sum_norm(whole, bias, gain, out=whole)
    close(whole, expected)


def test_pixels_that_are_apart():
    """As a convolution with more channels than are wanted leaves them, or some of its rows."""
    bias, gain = vector(12, seed=2), vector(12, seed=3)
    weight, last = head_weight(torch.ones(3, 12, 3, 3, device=DEVICE) / 99), vector(3, seed=4)
    for part in (picture(20, 6, 5)[:, :12], picture(20, 6, 5)[:, :12, 1:, 1:]):
        residual = picture(12, *part.shape[2:], seed=1)
        results = []
        for module in (kernels, plain):
            total, out = like(part), like(part)
            module.sum_norm(part, bias, gain, residual=residual, total=total, out=out)
            arguments = (part, bias, gain, weight, last)
            shown = module.head(*arguments, residual=residual, dtype=torch.float32)
            results.append((total, out, shown))
        for found, expected in zip(*results, strict=True):
            close(found, expected)


@pytest.mark.parametrize(("frames", "repeats"), COPIES)
def test_sum_with_copies_of_a_smaller_picture(frames, repeats):
    channels = 24
    x = picture(channels, 6, 10)
    small = picture(channels * 4 * frames // repeats, 3, 5, seed=1)
    bias, gain, copied = (
        vector(channels, seed=2),
        vector(channels, seed=3),
        Copied(frames, repeats, 0.5),
    )
    found, expected = like(x), like(x)
    for module, total in ((kernels, found), (plain, expected)):
        out = like(x)
        module.sum_norm(x, bias, gain, residual=small, copied=copied, total=total, out=out)
    close(found, expected)


@pytest.mark.parametrize(("side", "frames", "group"), MEANS)
def test_average(side, frames, group):
    x = picture(24, 6, 10)
    means = Means(side, frames, group, 2.0)
    close(kernels.average(x, means), plain.average(x, means))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_pixel(bad):
    x = picture(16, 3, 4)
    x[0, 5, 1, 2] = bad
    bias, gain, out = vector(16, seed=2), vector(16, seed=3), like(x)
    kernels.sum_norm(x, bias, gain, out=out)
    wrong = ~torch.isfinite(out).all(1)[0]
    assert wrong.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("colours", [3, 4])
def test_stem(channels, colours):
    x = torch.rand(1, colours, 9, 6, device=DEVICE) * 2 - 1
    weight = torch.randn(channels, colours, 3, 3, generator=torch.Generator().manual_seed(4))
    given = stem_weight(weight.to(DEVICE)), vector(channels, seed=5), vector(channels, seed=6)
    for found, expected in zip(kernels.stem(x, *given), plain.stem(x, *given), strict=True):
        close(found, expected)


@pytest.mark.parametrize("channels", WIDTHS)
@pytest.mark.parametrize("colours", [3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head(channels, colours, dtype):
    x, residual = picture(channels, 7, 9), picture(channels, 7, 9, seed=1)
    weight = torch.randn(colours, channels, 3, 3, generator=torch.Generator().manual_seed(4)) / 9
    given = (
        vector(channels, seed=5),
        vector(channels, seed=6),
        head_weight(weight.to(DEVICE)),
        vector(colours, seed=7),
    )
    found = kernels.head(x, *given, residual=residual, dtype=dtype)
    expected = plain.head(x, *given, residual=residual, dtype=dtype)
    assert found.dtype == dtype
    assert found.is_contiguous()
    torch.testing.assert_close(
        found, expected, rtol=1e-2 if dtype != torch.float32 else 1e-4, atol=1e-4
    )


def test_head_does_not_hide_what_is_not_a_number():
    x = picture(16, 5, 5)
    x[0, 3, 2, 2] = float("nan")
    weight = head_weight(torch.ones(3, 16, 3, 3, device=DEVICE))
    y = kernels.head(
        x,
        vector(16, seed=1),
        vector(16, seed=2),
        weight,
        vector(3, seed=3),
        residual=None,
        dtype=torch.float32,
    )
    assert int(torch.isnan(y).sum()) == 27


@pytest.mark.parametrize(
    ("tokens", "channels"), [(1, 64), (33, 16), (300, 64), (500, 96), (130, 384)]
)
@pytest.mark.parametrize("processors", [1, 12])
def test_attention(tokens, channels, processors):
    generator = torch.Generator().manual_seed(tokens)
    qkv = (torch.randn((tokens, 3 * channels), generator=generator) * 2).to(DEVICE, torch.float16)
    found = attention._attend(qkv, processors=processors).float()
    expected = plain.attend(qkv.float())
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_attention_of_more_channels_than_the_kernel_takes(monkeypatch):
    monkeypatch.setattr(attention, "RUN", 64)
    qkv = torch.randn((150, 3 * 400), generator=torch.Generator().manual_seed(8)) + 3
    found, expected = kernels.attend(qkv.half()).float(), plain.attend(qkv)
    assert float((found - expected).norm() / expected.norm()) < 1e-3


def test_the_last_turn_of_the_processors_is_filled():
    tokens, processors = 166 * 166, 132
    splits, split = attention.plan_splits(tokens, processors)
    assert (splits, split % attention.KEYS) == (3, 0)
    assert (splits - 1) * split < tokens <= splits * split
    assert attention.plan_splits(100, processors)[0] == 1
