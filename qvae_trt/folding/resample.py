"""Resampling by two: each is one convolution."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.folding.weights import conv2d, frozen
from qvae_trt.lowerings import Upsample


class UpsampleConv(nn.Module):
    """Nearest 2x upsampling and a 3x3 convolution. (B, C, H, W) → (B, C', 2H, 2W)."""

    def __init__(self, conv: nn.Conv2d, form: Upsample) -> None:
        super().__init__()
        self.form: Upsample = form
        weight, bias = conv.weight.detach(), cast("Tensor", conv.bias).detach()
        self.conv: nn.Module
        if form == "resize":
            self.conv = conv2d(weight, bias, padding=1)
        elif form == "conv_transpose":
            self.conv = _conv_transpose(weight, bias)
        else:
            self.conv = conv2d(_phases(weight), bias.repeat_interleave(4), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "resize":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = cast("Tensor", self.conv(x))
        return F.pixel_shuffle(y, 2) if self.form == "depth_to_space" else y


def _spread(taps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3 taps on the doubled axis → 4 taps of a stride-2 transposed convolution on the original.

    Output 2i + p reads inputs i-1, i, i+1; two neighbouring taps read the two copies of one pixel,
    so their weights add.
    """
    before, centre, after = taps
    return after, centre + after, before + centre, before


def _conv_transpose(weight: Tensor, bias: Tensor) -> nn.ConvTranspose2d:
    rows = torch.stack(_spread(cast("tuple[Tensor, Tensor, Tensor]", weight.unbind(2))), dim=2)
    taps = torch.stack(_spread(cast("tuple[Tensor, Tensor, Tensor]", rows.unbind(3))), dim=3)
    layer = nn.ConvTranspose2d(weight.shape[1], weight.shape[0], 4, stride=2, padding=1)
    layer.weight = frozen(taps.transpose(0, 1))
    layer.bias = frozen(bias)
    return layer


def _phases(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) on the doubled grid → (4 * O, I, 3, 3) on the original one.

    The channels are in pixel_shuffle's order.
    """
    zero = torch.zeros_like(weight[:, :, 0])

    def split(
        axis_taps: tuple[Tensor, ...], blank: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        before, centre, after = axis_taps
        return (before, centre + after, blank), (blank, before + centre, after)

    kernels = []
    for rows in split(weight.unbind(2), zero):
        by_row = torch.stack(rows, dim=2)
        blank = torch.zeros_like(by_row[:, :, :, 0])
        kernels += [torch.stack(columns, dim=3) for columns in split(by_row.unbind(3), blank)]
    return torch.stack(kernels, dim=1).flatten(0, 1)


class DownsampleConv(nn.Module):
    """3x3 convolution of stride 2, padded below and to the right only.

    Shapes: (B, C, H, W) → (B, C, H/2, W/2).
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv2d(conv.weight, cast("Tensor", conv.bias), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.conv(F.pad(x, (0, 1, 0, 1))))
