"""Weights of diffusers' layers as plain 2D layers of their own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from qvae_trt.errors import ModelError


def fold_conv(conv: nn.Module) -> nn.Conv2d:
    """The Conv2d that a causal convolution is on a first frame: a Conv3d's last temporal slice, or
    the Conv2d that it is already.
    """
    weight, bias = tensor_of(conv, "weight"), tensor_of(conv, "bias")
    if weight.ndim not in (4, 5) or set(getattr(conv, "stride", ())) != {1}:
        raise ModelError(f"cannot fold {conv}: expected a causal convolution of stride 1")
    height, width = weight.shape[-2:]
    if weight.ndim == 5:
        weight = weight[:, :, -1]
    return conv2d(weight, bias, padding=(height // 2, width // 2))


def merge_pointwise(conv: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """One layer for a convolution and the 1x1 convolution that follows it."""
    matrix = pointwise.weight.flatten(1).double()
    weight = torch.einsum("oi,ichw->ochw", matrix, conv.weight.double())
    bias = matrix @ cast("Tensor", conv.bias).double() + cast("Tensor", pointwise.bias).double()
    return conv2d(weight.to(conv.weight.dtype), bias.to(conv.weight.dtype), padding=1)


def frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().contiguous().clone(), requires_grad=False)


def tensor_of(module: nn.Module, path: str) -> Tensor:
    try:
        value = module.get_parameter(path)
    except AttributeError as error:
        raise ModelError(f"cannot fold a {type(module).__name__}: it has no {path}") from error
    return value.detach()


def conv2d(
    weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> nn.Conv2d:
    out_channels, in_channels, height, width = weight.shape
    layer = nn.Conv2d(in_channels, out_channels, (height, width), stride=stride, padding=padding)
    layer.weight = frozen(weight)
    layer.bias = frozen(bias)
    return layer


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = frozen(weight)
    layer.bias = frozen(bias)
    return layer
