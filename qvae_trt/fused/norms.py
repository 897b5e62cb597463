"""Everything between two convolutions, in one pass over memory: bias, residual sum, RMS norm, SiLU.

Tensors are pictures (1, C, H, W) in channels-last memory, so that the C values of a pixel are
neighbours. One program takes a block of pixels with all of their channels. Values are read and
written in the tensors' dtype; everything in between is float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from qvae_trt.fused.layout import rows_apart

if TYPE_CHECKING:
    from torch import Tensor

#: Elements and warps of a program.
ELEMENTS, WARPS = 4096, 4
#: What diffusers' norm does not divide by less than, squared.
_TINY = tl.constexpr(1e-24)


@triton.jit
def load_sum(
    x_ptr,
    residual_ptr,
    bias_ptr,
    pixel,
    channel,
    inside,
    width,
    row_stride,
    C: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PITCHED: tl.constexpr,
):
    """x + bias (+ residual) of some pixels, in float32: (pixels, channels)."""
    flat = pixel[:, None].to(tl.int64) * C + channel[None, :]
    if PITCHED:
        at = (pixel // width).to(tl.int64) * row_stride + (pixel % width) * C
        x = tl.load(x_ptr + at[:, None] + channel[None, :], mask=inside, other=0.0)
    else:
        x = tl.load(x_ptr + flat, mask=inside, other=0.0)
    total = x.to(tl.float32)
    total += tl.load(bias_ptr + channel, mask=channel < C, other=0.0).to(tl.float32)[None, :]
    if HAS_RESIDUAL:
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
    x_ptr,
    residual_ptr,
    bias_ptr,
    gain_ptr,
    sum_ptr,
    out_ptr,
    pixels,
    width,
    row_stride,
    C: tl.constexpr,
    C_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    PITCHED: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    NORM: tl.constexpr,
    SILU: tl.constexpr,
):
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < C)
    total = load_sum(
        x_ptr, residual_ptr, bias_ptr, pixel, channel, inside, width, row_stride,
        C, HAS_RESIDUAL, PITCHED,
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
    total: Tensor | None = None,
    out: Tensor | None = None,
    silu: bool = True,
) -> None:
    """Write x + bias (+ residual) into `total`, and its RMS norm over channels into `out`.

    Bytes: x and residual are read once, `total` and `out` are written once.

    Args:
        x: (1, C, H, W), channels last; rows may be further apart than their pixels take.
        bias, gain: (C,); the gain only where there is an `out`.
        residual: (1, C, H, W), channels last.
        total, out: the same; either may be x, if its rows are together, and None is not written.
        silu: SiLU follows the norm.
    """
    _, channels, height, width = x.shape
    pixels = height * width
    block, c_block = block_of(channels, ELEMENTS)
    _sum_norm_kernel[(triton.cdiv(pixels, block),)](
        x,
        x if residual is None else residual,
        bias,
        bias if gain is None else gain,
        x if total is None else total,
        x if out is None else out,
        pixels,
        width,
        x.stride(2),
        C=channels,
        C_BLOCK=c_block,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        PITCHED=rows_apart(x),
        WRITE_SUM=total is not None,
        NORM=out is not None,
        SILU=silu,
        num_warps=WARPS,
    )


def block_of(channels: int, elements: int) -> tuple[int, int]:
    """(pixels, channels) of a block of about so many elements; both are powers of two."""
    width = triton.next_power_of_2(channels)
    return max(1, elements // width), width
