"""The kernels' functions in plain PyTorch: what they compute, on any device.

Arguments and results are those of the functions of the same names in `norms`, `pixels` and
`attention`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from qvae_trt.fused.network import Copied, Means


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
    value = x.float() + bias.float().reshape(1, -1, 1, 1)
    if residual is not None and copied is not None:
        sequence = residual.float().repeat_interleave(copied.repeats, dim=1)
        height, width = residual.shape[2:]
        squares = sequence.reshape(-1, copied.frames, 4, height, width)[:, -1]
        value = value + F.pixel_shuffle(squares.flatten(0, 1)[None], 2) * copied.factor
    elif residual is not None:
        value = value + residual.float()
    if total is not None:
        total.copy_(value)
    if out is not None and gain is not None:
        y = _norm(value, gain)
        out.copy_(F.silu(y) if silu else y)


def average(x: Tensor, means: Means) -> Tensor:
    squares = F.pixel_unshuffle(x.float(), means.side)
    height, width = squares.shape[2:]
    squares = squares.reshape(x.shape[1], 1, means.side**2, height, width)
    before = [torch.zeros_like(squares)] * (means.frames - 1)
    sequence = torch.cat([*before, squares], dim=1)
    y = sequence.reshape(1, -1, means.group, height, width).mean(2) * means.factor
    return y.to(x.dtype, memory_format=torch.channels_last)


def stem(picture: Tensor, weight: Tensor, bias: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    colours, channels = picture.shape[1], bias.numel()
    taps = weight[: 9 * colours, :channels].reshape(3, 3, colours, channels).permute(3, 2, 0, 1)
    x = F.conv2d(picture.to(weight.dtype).float(), taps.float(), bias.float(), padding=1)
    normal = F.silu(_norm(x, gain))
    return tuple(y.to(weight.dtype, memory_format=torch.channels_last) for y in (normal, x))  # type: ignore[return-value]


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
    colours, channels = last_bias.numel(), x.shape[1]
    taps = weight[:channels, : 9 * colours].reshape(channels, 3, 3, colours).permute(3, 0, 1, 2)
    value = x.float() + bias.float().reshape(1, -1, 1, 1)
    if residual is not None:
        value = value + residual.float()
    y = F.silu(_norm(value, gain)).to(x.dtype)
    picture = F.conv2d(y.float(), taps.float(), last_bias.float(), padding=1)
    return picture.clamp(-1.0, 1.0).to(dtype).contiguous()


def attend(qkv: Tensor) -> Tensor:
    query, key, value = qkv.float().chunk(3, dim=1)
    weights = torch.softmax(query @ key.T / math.sqrt(query.shape[1]), dim=1)
    return (weights @ value).to(qkv.dtype)


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    inverse = torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-24)
    return x * inverse * gain.float().reshape(1, -1, 1, 1)
