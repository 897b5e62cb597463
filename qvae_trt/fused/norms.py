"""Everything between two convolutions, in one pass over memory: bias, residual sum, RMS norm, SiLU.

Tensors are pictures (1, C, H, W) in channels-last memory, so that the C values of a pixel are
neighbours. One program takes a block of pixels with all of their channels. Values are read and
written in the tensors' dtype; everything in between is float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qvae_trt.fused.launching import launch
from qvae_trt.fused.network import Copied, Means, apart

#: Elements and warps of a program.
ELEMENTS, WARPS = 4096, 4
#: What diffusers' norm does not divide by less than, squared.
_TINY = tl.constexpr(1e-24)


@triton.jit
def load_sum(
    x_ptr, residual_ptr, bias_ptr, pixel, channel, inside, pixels, width, row_stride,
    C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, PITCH: tl.constexpr, ROWS_APART: tl.constexpr,
    FRAMES: tl.constexpr = 0, REPEATS: tl.constexpr = 1, FACTOR: tl.constexpr = 1.0,
):  # fmt: skip
    """x + bias (+ residual) of some pixels, in float32: (pixels, channels).

    With `FRAMES` each pixel of the residual is a square of four: `network.Copied`.
    """
    if ROWS_APART:
        at = (pixel // width).to(tl.int64) * row_stride + (pixel % width) * PITCH
    else:
        at = pixel.to(tl.int64) * PITCH
    x = tl.load(x_ptr + at[:, None] + channel[None, :], mask=inside, other=0.0)
    total = x.to(tl.float32)
    total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if FRAMES > 0:
        row, column = pixel // width, pixel % width
        square = (row % 2) * 2 + column % 2
        at = (row // 2).to(tl.int64) * (width // 2) + column // 2
        at = at[:, None] * (4 * FRAMES * C // REPEATS)
        if REPEATS == 4 * FRAMES:  # a channel shows one value four times
            shown = tl.load(residual_ptr + at + channel[None, :], mask=inside, other=0.0)
        elif REPEATS == 2 * FRAMES:  # one of two values that are neighbours: both are loaded
            value = tl.arange(0, 2 * channel.shape[0])
            there = (pixel[:, None] < pixels) & (value[None, :] < 2 * C)
            both = tl.load(residual_ptr + at + value[None, :], mask=there, other=0.0)
            first, second = tl.split(both.reshape(pixel.shape[0], channel.shape[0], 2))
            index = (4 * FRAMES - 4 + square) // REPEATS
            shown = tl.where(index[:, None] == 0, first, second)
        else:
            place = channel[None, :] * (4 * FRAMES) + (4 * FRAMES - 4) + square[:, None]
            shown = tl.load(residual_ptr + at + place // REPEATS, mask=inside, other=0.0)
        total += shown.to(tl.float32) * FACTOR
    elif HAS_RESIDUAL:
        flat = pixel[:, None].to(tl.int64) * C + channel[None, :]
        total += tl.load(residual_ptr + flat, mask=inside, other=0.0).to(tl.float32)
    return total


@triton.jit
def normalise(total, gain_ptr, channel, C: tl.constexpr, SILU: tl.constexpr):
    """total / rms(total) * gain of each row, then SiLU if asked. `total` is 0 past C channels."""
    inverse = tl.rsqrt(tl.sum(total * total, axis=1) * (1.0 / C) + _TINY)
    gain = tl.load(gain_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)
    y = total * inverse[:, None] * gain[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


@triton.jit(do_not_specialize=["pixels", "width", "row_stride"])
def _sum_norm_kernel(
    x_ptr, residual_ptr, bias_ptr, gain_ptr, sum_ptr, out_ptr, pixels, width, row_stride,
    C: tl.constexpr, C_BLOCK: tl.constexpr, BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    PITCH: tl.constexpr, ROWS_APART: tl.constexpr, WRITE_SUM: tl.constexpr, NORM: tl.constexpr,
    SILU: tl.constexpr, FRAMES: tl.constexpr, REPEATS: tl.constexpr, FACTOR: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < C)
    total = load_sum(
        x_ptr, residual_ptr, bias_ptr, pixel, channel, inside, pixels, width, row_stride,
        C, HAS_RESIDUAL, PITCH, ROWS_APART, FRAMES, REPEATS, FACTOR,
    )  # fmt: skip
    flat = pixel[:, None].to(tl.int64) * C + channel[None, :]
    if WRITE_SUM:
        tl.store(sum_ptr + flat, total.to(sum_ptr.dtype.element_ty), mask=inside)
    if NORM:
        y = normalise(total, gain_ptr, channel, C, SILU)
        tl.store(out_ptr + flat, y.to(out_ptr.dtype.element_ty), mask=inside)


def sum_norm(
    x: Tensor,
    bias: Tensor,
    gain: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    copied: Copied | None = None,
    total: Tensor | None = None,
    out: Tensor | None = None,
    silu: bool = True,
) -> None:
    """Write x + bias (+ residual) into `total`, and its RMS norm over channels into `out`.

    Bytes: x and residual are read once, `total` and `out` are written once.

    Args:
        x: (1, C, H, W), channels last; pixels and rows may be further apart than they take.
        bias, gain: (C,); the gain only where there is an `out`.
        residual: (1, C, H, W), channels last; with `copied`, what that makes such a tensor of:
            (1, C', H/2, W/2).
        total, out: the same; either may be x, if nothing in it is apart, and None is not written.
        silu: SiLU follows the norm.
    """
    _, channels, height, width = x.shape
    pixels = height * width
    block, c_block = block_of(channels, ELEMENTS)
    pitch, rows_apart = apart(x)
    launch(_sum_norm_kernel, (triton.cdiv(pixels, block),))(
        x, x if residual is None else residual, bias, bias if gain is None else gain,
        x if total is None else total, x if out is None else out, pixels, width, x.stride(2),
        C=channels, C_BLOCK=c_block, BLOCK=block, HAS_RESIDUAL=residual is not None,
        PITCH=pitch, ROWS_APART=rows_apart, WRITE_SUM=total is not None,
        NORM=out is not None, SILU=silu,
        FRAMES=0 if copied is None else copied.frames,
        REPEATS=1 if copied is None else copied.repeats,
        FACTOR=1.0 if copied is None else copied.factor, num_warps=WARPS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["pixels", "width"])
def _average_kernel(
    x_ptr, out_ptr, pixels, width,
    C: tl.constexpr, C_OUT: tl.constexpr, C_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
    SIDE: tl.constexpr, FRAMES: tl.constexpr, GROUP: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < C_OUT)
    row, column = (pixel // width) * SIDE, (pixel % width) * SIDE
    total = tl.zeros([BLOCK, C_BLOCK], tl.float32)
    for step in tl.static_range(GROUP):
        place = channel * GROUP + step
        square = place % (SIDE * SIDE)
        there = inside & (place // (SIDE * SIDE) % FRAMES == FRAMES - 1)[None, :]
        down = row[:, None] + (square // SIDE)[None, :]
        right = column[:, None] + (square % SIDE)[None, :]
        at = (down.to(tl.int64) * (width * SIDE) + right) * C
        at += (place // (SIDE * SIDE * FRAMES))[None, :]
        total += tl.load(x_ptr + at, mask=there, other=0.0).to(tl.float32)
    flat = pixel[:, None].to(tl.int64) * C_OUT + channel[None, :]
    tl.store(out_ptr + flat, (total * SCALE).to(out_ptr.dtype.element_ty), mask=inside)


def average(x: Tensor, means: Means) -> Tensor:
    """Means of groups of values, as `network.Means` says.

    Args:
        x: (1, C, H, W), channels last, sides multiples of `means.side`.

    Returns:
        (1, C', H/side, W/side), channels last.
    """
    _, channels, height, width = x.shape
    side, frames, group = means.side, means.frames, means.group
    height, width, made = height // side, width // side, channels * frames * side * side // group
    shape = (1, made, height, width)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    block, c_block = block_of(made, ELEMENTS)
    launch(_average_kernel, (triton.cdiv(height * width, block),))(
        x, out, height * width, width,
        C=channels, C_OUT=made, C_BLOCK=c_block, BLOCK=block,
        SIDE=side, FRAMES=frames, GROUP=group, SCALE=means.factor / group, num_warps=WARPS,
    )  # fmt: skip
    return out


def block_of(channels: int, elements: int) -> tuple[int, int]:
    """(pixels, channels) of a block of about so many elements; both are powers of two."""
    width = triton.next_power_of_2(channels)
    return max(1, elements // width), width
