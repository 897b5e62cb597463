"""Powers of two, folded into weights, that keep the squares of `conv_spread` and `conv_wide`
inside fp16.

A norm does not see the scale of its input. So the stream of residual sums may run at any scale
between two resamplings, and the output of a block's first convolution at another: whatever makes
them is multiplied by a power of two, which is exact and costs nothing when the network runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.folding.attention import Attention
from qvae_trt.folding.norm import RmsNorm
from qvae_trt.folding.resample import DownsampleConv, UpsampleConv

if TYPE_CHECKING:
    from collections.abc import Iterable

    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.folding.network import FoldedVae
    from qvae_trt.folding.shortcut import Average, Copies

#: Root mean squares that are left alone: 64 times above the highest, fp16 still holds a square; 16
#: times below the lowest, the mean of squares still has 8 bits. With `conv_wide` it is 32 times
#: above, and 8 below.
_LOWEST_RMS, _HIGHEST_RMS = 2.0**-4, 4.0


def keep_squares_in_fp16(folded: FoldedVae, vae: AutoencoderKLQwenImage) -> None:
    """Rescale the weights of `folded`, after one small pass in float32 that shows its activations.

    The pass sees seeded inputs: latents with the statistics of the config, and blurred noise.
    """
    rms = _observe(folded, vae)
    for part in (folded.encoder, folded.decoder):
        _rescale(_steps(part.layers), rms)


def power_of_two(rms: float) -> float:
    """What to multiply an activation of this root mean square by; 1 inside the range left alone."""
    if not math.isfinite(rms) or rms <= 0:
        return 1.0
    if rms > _HIGHEST_RMS:
        return 2.0 ** -math.ceil(math.log2(rms / _HIGHEST_RMS))
    if rms < _LOWEST_RMS:
        return 2.0 ** math.ceil(math.log2(_LOWEST_RMS / rms))
    return 1.0


def _observe(folded: FoldedVae, vae: AutoencoderKLQwenImage) -> dict[nn.Module, float]:
    """The root mean square of every norm's input."""
    generator = torch.Generator().manual_seed(0)
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in statistics)
    latents = torch.randn((1, vae.config.z_dim, 8, 8), generator=generator) * std + mean
    channels = cast("int", folded.encoder.layers[0].in_channels)
    noise = torch.rand((1, channels, 16, 16), generator=generator) * 2 - 1
    pixels = F.interpolate(noise, size=(64, 64), mode="bilinear")
    rms: dict[nn.Module, float] = {}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rms[norm] = float(inputs[0].double().square().mean().sqrt())

    norms = [module for module in folded.modules() if isinstance(module, RmsNorm)]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    dtype = vae.dtype
    folded.float()
    folded.encoder(pixels)
    folded.decoder(latents)
    folded.to(dtype)
    for hook in hooks:
        hook.remove()
    return rms


def _steps(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers; a level that resamples comes after its blocks, another one is its blocks."""
    steps: list[nn.Module] = []
    for layer in layers:
        steps += getattr(layer, "blocks", ())
        if not hasattr(layer, "blocks") or not isinstance(layer.resample, nn.Identity):
            steps.append(layer)
    return steps


def _rescale(layers: list[nn.Module], rms: dict[nn.Module, float]) -> None:
    """Give each stretch between two convolutions of the stream a scale of its own."""
    before = 1.0
    entries = nn.Conv2d | UpsampleConv | DownsampleConv
    starts = [i for i, x in enumerate(layers) if isinstance(x, entries) or hasattr(x, "blocks")]
    for start, stop in zip(starts, [*starts[1:], len(layers)], strict=True):
        stretch = layers[start + 1 : stop]
        scale = power_of_two(max((rms[_stream_norm(block)] for block in stretch), default=1.0))
        entry = layers[start]
        _multiply(_convolution(entry), weight=scale / before, bias=scale)
        if hasattr(entry, "blocks") and entry.shortcut is not None:
            cast("Average | Copies", entry.shortcut).multiply(scale / before)
        for block in stretch:
            _rescale_block(block, scale, rms)
        # The norm before the last convolution has taken the scale out again.
        before = 1.0 if stretch and isinstance(stretch[-1], RmsNorm) else scale


def _rescale_block(block: nn.Module, scale: float, rms: dict[nn.Module, float]) -> None:
    if isinstance(block, Attention):
        _multiply(block.proj, weight=scale, bias=scale)
    elif not isinstance(block, RmsNorm):
        inner = power_of_two(rms[cast("RmsNorm", block.norm2)])
        _multiply(block.conv1, weight=inner, bias=inner)
        _multiply(block.conv2, weight=scale, bias=scale)
        if not isinstance(block.shortcut, nn.Identity):
            _multiply(block.shortcut, weight=1.0, bias=scale)


def _convolution(layer: nn.Module) -> nn.Module:
    layer = cast("nn.Module", getattr(layer, "resample", layer))
    return cast("nn.Module", layer.conv) if hasattr(layer, "conv") else layer


def _stream_norm(block: nn.Module) -> RmsNorm:
    if isinstance(block, RmsNorm):
        return block
    return cast("RmsNorm", block.norm if isinstance(block, Attention) else block.norm1)


def _multiply(layer: object, *, weight: float, bias: float) -> None:
    module = cast("nn.Conv2d", layer)
    module.weight.mul_(weight)
    cast("Tensor", module.bias).mul_(bias)
