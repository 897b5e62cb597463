"""The shortcuts around whole levels, which Qwen-Image-2.1 has: means and copies of pixels.

They were made for video: a group of values is spread over two frames. Of a picture, the frame
before is zeros, which a mean counts; and of two frames that a copy makes, the last one is kept.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.errors import ModelError


class Average(nn.Module):
    """Means of groups of values: (B, C, H, W) → (B, C', H/side, W/side).

    Channel, frame, row and column of a square, in this order, make one sequence, and each output
    channel is the mean of a run of it. Written as a convolution, which also may take the sum.
    """

    def __init__(self, shortcut: Any, dtype: torch.dtype) -> None:
        super().__init__()
        channels, frames, side = shortcut.in_channels, shortcut.factor_t, shortcut.factor_s
        places = torch.arange(channels * shortcut.factor)
        group = shortcut.group_size
        mean = (places // group)[None] == torch.arange(shortcut.out_channels)[:, None]
        mean = mean.reshape(-1, channels, frames, side, side)[:, :, -1]
        self.side, self.frames, self.group = side, frames, group
        self.conv: nn.Conv2d | None = None
        if side > 1 or group > 1:
            self.conv = nn.Conv2d(channels, mean.shape[0], side, stride=side, bias=False)
            self.conv.weight = nn.Parameter(mean.to(dtype) / group, requires_grad=False)
        self.factor = 1.0

    def multiply(self, factor: float) -> None:
        """By a power of two, from now on."""
        self.factor *= factor
        if self.conv is not None:
            self.conv.weight.mul_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.conv is None else cast("Tensor", self.conv(x))


class Copies(nn.Module):
    """Each pixel as a square of four: (B, C, H, W) → (B, C', 2H, 2W).

    Output channel, frame, row and column of a square, in this order, make one sequence, along which
    each input channel is repeated `repeats` times.
    """

    def __init__(self, shortcut: Any) -> None:
        super().__init__()
        self.frames, self.repeats = shortcut.factor_t, shortcut.repeats
        if shortcut.factor_s != 2:
            raise ModelError(f"cannot fold a shortcut that makes sides {shortcut.factor_s} times")
        #: Of each output channel, which input channel each pixel of the square shows.
        shown = [
            ((channel * self.frames + self.frames - 1) * 4 + pixel) // self.repeats
            for channel in range(shortcut.out_channels)
            for pixel in range(4)
        ]
        first = shown[::4]
        step = first[1] - first[0] if len(first) > 1 else 1
        self.every: slice | None = None
        if step > 0 and shown == [first[0] + step * (i // 4) for i in range(len(shown))]:
            self.every = slice(first[0], first[-1] + 1, step)
        self.register_buffer("shown", torch.tensor(shown), persistent=False)
        self.factor = 1.0

    def multiply(self, factor: float) -> None:
        """As that of :class:`Average`."""
        self.factor *= factor

    def forward(self, x: Tensor) -> Tensor:
        if self.factor != 1.0:
            x = x * self.factor
        if self.every is not None:
            return F.interpolate(x[:, self.every], scale_factor=2.0, mode="nearest")
        return F.pixel_shuffle(x.index_select(1, cast("Tensor", self.shown)), 2)
