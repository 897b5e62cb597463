"""The two ends of the network, where a picture has three or four channels.

A 3x3 convolution from or to so few channels is a product with few rows or columns: libraries move
more memory for it than the rest needs. Here the first one is one kernel with the norm that follows
it, and the last one is computed tap by tap inside the norm before it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvae_trt.fused.launching import launch
from qvae_trt.fused.network import apart
from qvae_trt.fused.norms import block_of, load_sum, normalise

#: Elements or pixels, and warps, of a program.
STEM_ELEMENTS, STEM_WARPS = 4096, 4
TAP_PIXELS, TAP_WARPS = 32, 4
PIXEL_BLOCK = 256


@triton.jit(do_not_specialize=["height", "width", "channel_stride", "row_stride", "column_stride"])
def _stem_kernel(
    picture_ptr, weight_ptr, bias_ptr, gain_ptr, x_ptr, out_ptr, height, width, channel_stride,
    row_stride, column_stride,
    COLOURS: tl.constexpr, TAPS_BLOCK: tl.constexpr, C: tl.constexpr, C_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    tap = tl.arange(0, TAPS_BLOCK)
    at, colour = tap // COLOURS, tap % COLOURS
    row = (pixel // width)[:, None] + (at // 3 - 1)[None, :]
    column = (pixel % width)[:, None] + (at % 3 - 1)[None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    inside = inside & (tap < 9 * COLOURS)[None, :]
    offset = colour[None, :].to(tl.int64) * channel_stride + row.to(tl.int64) * row_stride
    picture = tl.load(picture_ptr + offset + column * column_stride, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + tap[:, None] * C_BLOCK + channel[None, :])
    total = tl.dot(picture.to(weight.dtype), weight)
    total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    inside = (pixel[:, None] < height * width) & (channel[None, :] < C)
    flat = pixel[:, None].to(tl.int64) * C + channel[None, :]
    tl.store(x_ptr + flat, total.to(x_ptr.dtype.element_ty), mask=inside)
    y = normalise(total, gain_ptr, channel, C, True)
    tl.store(out_ptr + flat, y.to(out_ptr.dtype.element_ty), mask=inside)


def stem(picture: Tensor, weight: Tensor, bias: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """3x3 convolution of a picture, and SiLU of the RMS norm of that.

    Bytes: the picture is read about once (its neighbours lie in the caches), both results are
    written once.

    Args:
        picture: (1, colours, H, W), any floating dtype and strides.
        weight: of `network.stem_weight`; bias, gain: (C,).

    Returns:
        The normalised and the plain one, (1, C, H, W) in the weight's dtype, channels last.
    """
    _, colours, height, width = picture.shape
    channels = bias.numel()
    shape = (1, channels, height, width)
    x, out = (
        torch.empty(
            shape, dtype=weight.dtype, device=picture.device, memory_format=torch.channels_last
        )
        for _ in range(2)
    )
    block, c_block = block_of(channels, STEM_ELEMENTS)
    launch(_stem_kernel, (triton.cdiv(height * width, max(16, block)),))(
        picture, weight, bias, gain, x, out, height, width, picture.stride(1), picture.stride(2),
        picture.stride(3),
        COLOURS=colours, TAPS_BLOCK=weight.shape[0], C=channels, C_BLOCK=c_block,
        BLOCK=max(16, block), num_warps=STEM_WARPS,
    )  # fmt: skip
    return out, x


@triton.jit(do_not_specialize=["pixels", "width", "row_stride"])
def _taps_kernel(
    x_ptr, residual_ptr, bias_ptr, gain_ptr, weight_ptr, taps_ptr, pixels, width, row_stride,
    TAPS: tl.constexpr, TAPS_BLOCK: tl.constexpr, C: tl.constexpr, C_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PITCH: tl.constexpr,
    ROWS_APART: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    tap = tl.arange(0, TAPS_BLOCK)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < C)
    total = load_sum(
        x_ptr, residual_ptr, bias_ptr, pixel, channel, inside, pixels, width, row_stride,
        C, HAS_RESIDUAL, PITCH, ROWS_APART,
    )  # fmt: skip
    y = normalise(total, gain_ptr, channel, C, True)
    weight = tl.load(weight_ptr + channel[:, None] * TAPS_BLOCK + tap[None, :])
    taps = tl.dot(y.to(weight.dtype), weight)
    at = tap[None, :].to(tl.int64) * pixels + pixel[:, None]
    wanted = (pixel[:, None] < pixels) & (tap[None, :] < TAPS)
    tl.store(taps_ptr + at, taps.to(taps_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["height", "width"])
def _picture_kernel(
    taps_ptr, bias_ptr, out_ptr, height, width, COLOURS: tl.constexpr, BLOCK: tl.constexpr
):
    pixels = height * width
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    colour = tl.program_id(1)
    row, column = pixel // width, pixel % width
    total = tl.zeros([BLOCK], tl.float32) + tl.load(bias_ptr + colour).to(tl.float32)
    for tap in tl.static_range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        plane = (tap * COLOURS + colour).to(tl.int64) * pixels
        at = plane + pixel + (down * width + right)
        total += tl.load(taps_ptr + at, mask=inside, other=0.0).to(tl.float32)
    # Comparisons and not minimum and maximum: NaN stays what it is.
    total = tl.where(total > 1.0, 1.0, total)
    total = tl.where(total < -1.0, -1.0, total)
    at = colour.to(tl.int64) * pixels + pixel
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=pixel < pixels)


def head(
    x: Tensor,
    bias: Tensor,
    gain: Tensor,
    weight: Tensor,
    last_bias: Tensor,
    *,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """SiLU of the RMS norm of x + bias (+ residual), and the 3x3 convolution of that to a picture.

    Each pixel is multiplied with all taps first; then each colour of a pixel is the sum of nine
    neighbours' products. Bytes: x and residual are read once, nine products a colour and pixel are
    written and read once, the picture is written once.

    Args:
        x, bias, gain, residual: as for :func:`qvae_trt.fused.norms.sum_norm`; x stays as it is.
        weight: of `network.head_weight`; last_bias: (colours,).
        dtype: of the picture.

    Returns:
        (1, colours, H, W), contiguous, clamped to [-1, 1].
    """
    _, channels, height, width = x.shape
    colours, pixels = last_bias.numel(), height * width
    taps = torch.empty((9 * colours, pixels), dtype=x.dtype, device=x.device)
    pitch, rows_apart = apart(x)
    launch(_taps_kernel, (triton.cdiv(pixels, TAP_PIXELS),))(
        x, x if residual is None else residual, bias, gain, weight, taps, pixels, width,
        x.stride(2),
        TAPS=9 * colours, TAPS_BLOCK=weight.shape[1], C=channels,
        C_BLOCK=triton.next_power_of_2(channels), BLOCK=TAP_PIXELS,
        HAS_RESIDUAL=residual is not None, PITCH=pitch, ROWS_APART=rows_apart,
        num_warps=TAP_WARPS,
    )  # fmt: skip
    picture = torch.empty((1, colours, height, width), dtype=dtype, device=x.device)
    launch(_picture_kernel, (triton.cdiv(pixels, PIXEL_BLOCK), colours))(
        taps, last_bias, picture, height, width, COLOURS=colours, BLOCK=PIXEL_BLOCK, num_warps=4,
    )  # fmt: skip
    return picture
