"""The exact single-frame 2D graph of the Qwen-Image VAE.

A picture is one frame. Before it, a causal Conv3d pads zero frames only, so that just the last
temporal slice of each kernel meets data: the layer *is* a Conv2d with that slice. The temporal
convolutions of the resamplers never run on a first frame. What is left has 42 % of the decoder's
arithmetic and 41 % of the encoder's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from qvae_trt.errors import ModelError
from qvae_trt.folding.attention import Attention
from qvae_trt.folding.norm import RmsNorm
from qvae_trt.folding.resample import DownsampleConv, UpsampleConv
from qvae_trt.folding.scaling import keep_squares_in_fp16
from qvae_trt.folding.shortcut import Average, Copies
from qvae_trt.folding.weights import fold_conv, merge_pointwise, tensor_of
from qvae_trt.lowerings import PYTORCH, Lowering

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

#: How diffusers names the layers of the VAEs of this family.
_LAYER = re.compile(r"QwenImage(?:21)?([A-Z]\w*)")


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus a shortcut. (B, C, H, W) → (B, C', H, W)."""

    def __init__(self, block: Any, lowering: Lowering) -> None:
        super().__init__()
        self.norm1 = RmsNorm(tensor_of(block, "norm1.gamma"), form=lowering.norm, silu=True)
        self.conv1 = fold_conv(block.conv1)
        self.norm2 = RmsNorm(tensor_of(block, "norm2.gamma"), form=lowering.norm, silu=True)
        if lowering.norm == "conv_spread":
            self.norm2.move_gain_into(self.conv1)
        self.conv2 = fold_conv(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if isinstance(shortcut, nn.Identity) else fold_conv(shortcut)
        self.subtracts = lowering.residual == "subtract" and isinstance(shortcut, nn.Identity)
        if self.subtracts:
            self.conv2.weight.neg_()
            cast("Tensor", self.conv2.bias).neg_()

    def first_half(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.conv1(self.norm1(x)))

    def second_half(self, y: Tensor) -> Tensor:
        return cast("Tensor", self.conv2(self.norm2(y)))

    def joined(self, y: Tensor, shortcut: Tensor) -> Tensor:
        return shortcut - y if self.subtracts else shortcut + y

    def forward(self, x: Tensor) -> Tensor:
        return self.joined(self.second_half(self.first_half(x)), self.shortcut(x))


class Level(nn.Module):
    """Residual blocks and a resampling, if any, with a shortcut around all of them.

    Shapes: (B, C, H, W) → (B, C', H, W), or half or twice the sides.
    """

    def __init__(self, block: Any, lowering: Lowering) -> None:
        super().__init__()
        down = _name_of(block) == "ResidualDownBlock"
        resample = block.downsampler if down else block.upsampler
        self.blocks = nn.Sequential(*(_fold_block(resnet, lowering) for resnet in block.resnets))
        self.resample = nn.Identity() if resample is None else _fold_block(resample, lowering)
        self.shortcut: Average | Copies | None = None
        if block.avg_shortcut is not None:
            dtype = next(self.parameters()).dtype
            shortcut = block.avg_shortcut
            self.shortcut = Average(shortcut, dtype) if down else Copies(shortcut)

    def resampled(self, y: Tensor, x: Tensor) -> Tensor:
        """What the blocks have made of x, resampled, with the shortcut."""
        y = self.resample(y)
        return y if self.shortcut is None else y + self.shortcut(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.resampled(self.blocks(x), x)


class Bands(nn.Module):
    """A level that doubles the sides and the block after it, in bands of rows.

    What is between the two has more channels than all else in full size (2.4 GB at 2048x2048 in
    Qwen-Image-2.1), and is held one band at a time. Shapes: (B, C, H, W) → (B, C', 2H, 2W).
    """

    def __init__(self, level: Level, block: ResidualBlock, bands: int) -> None:
        super().__init__()
        self.level = level
        self.block = block
        self.bands = bands

    def forward(self, x: Tensor) -> Tensor:
        y = self.level.blocks(x)
        rows = x.shape[2]
        halves, shortcuts = [], []
        for band in range(self.bands):
            top, end = rows * band // self.bands, rows * (band + 1) // self.bands
            # With a row of each neighbour, which the two 3x3 convolutions on the doubled grid need.
            above = top - (band > 0)
            below = end + (band < self.bands - 1)
            wide = self.level.resampled(y[:, :, above:below], x[:, :, above:below])
            own = slice(2 * (top - above), 2 * (end - above))
            halves.append(self.block.first_half(wide)[:, :, own])
            shortcuts.append(self.block.shortcut(wide)[:, :, own])
        y = self.block.second_half(torch.cat(halves, 2))
        return self.block.joined(y, torch.cat(shortcuts, 2))


class Encoder(nn.Module):
    """(B, C, H, W) in [-1, 1] → moments (B, 2z, H/s, W/s), mean first."""

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        source = vae.encoder
        layers: list[nn.Module] = [fold_conv(source.conv_in)]
        for block in source.down_blocks:
            layers += _fold_blocks(block, lowering)
        layers += _mid_blocks(source.mid_block, lowering)
        layers += [
            RmsNorm(tensor_of(source, "norm_out.gamma"), form=lowering.norm, silu=True),
            merge_pointwise(fold_conv(source.conv_out), fold_conv(vae.quant_conv)),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.layers(x))


class Decoder(nn.Module):
    """Un-normalised latents (B, z, h, w) → (B, C, s h, s w), clamped to [-1, 1]."""

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        source = vae.decoder
        layers: list[nn.Module] = [
            fold_conv(vae.post_quant_conv),
            fold_conv(source.conv_in),
        ]
        layers += _mid_blocks(source.mid_block, lowering)
        for block in source.up_blocks:
            layers += _fold_blocks(block, lowering)
        layers += [
            RmsNorm(tensor_of(source, "norm_out.gamma"), form=lowering.norm, silu=True),
            fold_conv(source.conv_out),
        ]
        self.layers = nn.Sequential(*layers)

    def cut(self, bands: int) -> None:
        """Compute the last level that doubles the sides in bands, and the block after it."""
        *before, doubling, last, norm, conv = self.layers
        # In the first VAE there are no levels: its upsampling leaves fewer channels.
        if isinstance(doubling, Level) and isinstance(last, Level):
            first, *rest = last.blocks
            banded = Bands(doubling, cast("ResidualBlock", first), bands)
            self.layers = nn.Sequential(*before, banded, *rest, norm, conv)

    def forward(self, z: Tensor) -> Tensor:
        return cast("Tensor", self.layers(z)).clamp(-1.0, 1.0)


class FoldedVae(nn.Module):
    """Encoder and decoder of one frame, with the 5-D tensors of diffusers and of the engines.

    s is how many pixels of a side one latent stands for: 8, or 16 in Qwen-Image-2.1.
    """

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        self.encoder = Encoder(vae, lowering)
        self.decoder = Decoder(vae, lowering)
        self.lowering = lowering

    @property
    def scale(self) -> int:
        """How many pixels of a side one latent stands for."""
        halvings = [layer for layer in self.encoder.modules() if isinstance(layer, DownsampleConv)]
        return 2 ** len(halvings)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, C, 1, H, W) in [-1, 1] → moments (B, 2z, 1, H/s, W/s)."""
        return cast("Tensor", self.encoder(pixels.squeeze(2)).unsqueeze(2))

    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalised (B, z, 1, h, w) → (B, C, 1, s h, s w) in [-1, 1]."""
        return cast("Tensor", self.decoder(latents.squeeze(2)).unsqueeze(2))


def fold(vae: AutoencoderKLQwenImage, *, lowering: Lowering = PYTORCH) -> FoldedVae:
    """The single-frame 2D network of `vae`, with copies of its weights, in eval mode.

    Args:
        vae: diffusers' AutoencoderKLQwenImage or AutoencoderKLQwenImage21, RGB or RGBA, of any
            width.
        lowering: how the graph is written; the function computed is the same.

    Raises:
        ModelError: `vae` has a layer that this fold does not know.
    """
    with torch.no_grad():
        folded = FoldedVae(vae, lowering).eval().requires_grad_(False)
        if lowering.norm == "conv_spread":
            keep_squares_in_fp16(folded, vae)
        if lowering.bands > 1:
            folded.decoder.cut(lowering.bands)
    return folded


def _name_of(block: nn.Module) -> str:
    """The name of a layer in diffusers without that of the model."""
    match = _LAYER.fullmatch(type(block).__name__)
    return match[1] if match else ""


def _fold_blocks(block: Any, lowering: Lowering) -> list[nn.Module]:
    """What one block of the encoder's or decoder's list becomes."""
    if _name_of(block) != "UpBlock":
        return [_fold_block(block, lowering)]
    return [_fold_block(layer, lowering) for layer in [*block.resnets, *(block.upsamplers or ())]]


def _fold_block(block: nn.Module, lowering: Lowering) -> nn.Module:
    kind = _name_of(block)
    if kind == "ResidualBlock":
        return ResidualBlock(block, lowering)
    if kind == "AttentionBlock":
        return Attention(block, lowering)
    if kind in ("ResidualDownBlock", "ResidualUpBlock"):
        return Level(block, lowering)
    if kind == "Resample":
        resample = cast("nn.Sequential", block.resample)
        conv = cast("nn.Conv2d", resample[1])
        if str(block.mode).startswith("upsample"):
            return UpsampleConv(conv, lowering.upsample)
        return DownsampleConv(conv)
    raise ModelError(
        f"cannot fold a {type(block).__name__}",
        fix="expected the layers of diffusers' AutoencoderKLQwenImage or AutoencoderKLQwenImage21",
    )


def _mid_blocks(mid: nn.Module, lowering: Lowering) -> list[nn.Module]:
    resnets, attentions = cast("nn.ModuleList", mid.resnets), cast("nn.ModuleList", mid.attentions)
    blocks = [_fold_block(resnets[0], lowering)]
    for attention, resnet in zip(attentions, list(resnets)[1:], strict=True):
        blocks += [_fold_block(attention, lowering), _fold_block(resnet, lowering)]
    return blocks
