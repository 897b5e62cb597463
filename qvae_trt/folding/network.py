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
        if lowering.norm.startswith("conv_"):
            self.norm2.move_gain_into(self.conv1)
        self.conv2 = fold_conv(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if isinstance(shortcut, nn.Identity) else fold_conv(shortcut)
        self.subtracts = lowering.residual == "subtract" and isinstance(shortcut, nn.Identity)
        if self.subtracts:
            self.conv2.weight.neg_()
            cast("Tensor", self.conv2.bias).neg_()

    def forward(self, x: Tensor) -> Tensor:
        y = cast("Tensor", self.conv2(self.norm2(self.conv1(self.norm1(x)))))
        return cast("Tensor", self.shortcut(x) - y if self.subtracts else self.shortcut(x) + y)


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

    def forward(self, x: Tensor) -> Tensor:
        y = cast("Tensor", self.resample(self.blocks(x)))
        return y if self.shortcut is None else y + self.shortcut(x)


class Halves(nn.Module):
    """Layers with one resampling among them, of the upper half of the rows and then of the lower.

    So less of what is in full size is held at once. A half has a margin beyond the middle: the rows
    that its own ones depend on. Shapes: (B, C, H, W) → (B, C', 2H, 2W), or half the sides.
    """

    def __init__(self, layers: list[nn.Module], *, least_margin: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        before, after = 0, 0  # convolutions that reach to the next row
        self.doubles = False
        for module in self.layers.modules():
            if isinstance(module, UpsampleConv | DownsampleConv):
                self.doubles = isinstance(module, UpsampleConv)
                before, after = after, 0
            after += isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1
        small, large = (before, after) if self.doubles else (after, before)
        #: In rows of the smaller grid. The last one is for the resampling itself.
        self.margin = max(least_margin, small + (large + 1) // 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        middle, margin = x.shape[2] // 2, self.margin * (1 if self.doubles else 2)
        upper = self._result(x.narrow(2, 0, middle + margin), 0, middle)
        if type(x.shape[2]) is int:
            lower = x.narrow(2, middle - margin, middle + margin)
        else:
            # Cut twice. TensorRT bounds the start and the end of a slice one by one: of the first
            # cut it would plan nearly all rows. The second one's length is bounded as it is.
            lower = x[:, :, middle - margin - 1 :].narrow(2, 1, middle + margin)
        # Zeros made of the upper half: else both may be computed side by side, and held at once.
        lower = lower + upper[:, :1, :1, :1].clamp(0.0, 0.0)
        return torch.cat([upper, self._result(lower, margin, middle)], 2)

    def _result(self, half: Tensor, skipped: int, rows: int) -> Tensor:
        y = cast("Tensor", self.layers(half))
        if self.doubles:
            return y.narrow(2, 2 * skipped, 2 * rows)
        return y.narrow(2, skipped // 2, rows // 2)


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
        if lowering.norm.startswith("conv_"):
            keep_squares_in_fp16(folded, vae)
        if lowering.norm == "conv_wide":
            for module in folded.modules():
                if isinstance(module, RmsNorm):
                    module.widen()
        if lowering.halves != "none":
            _halve(folded)
    return folded


def _halve(folded: FoldedVae) -> None:
    down, up = list(folded.encoder.layers), list(folded.decoder.layers)
    rest, (*_, before, last) = 1 + _places(DownsampleConv, down)[0], _places(UpsampleConv, up)
    end = Halves(up[last:])
    # As many rows as in the decoder: TensorRT times a convolution of both only once.
    start = Halves(down[:rest], least_margin=end.margin)
    doubling = Halves([up[before]])
    # Of a picture 256 high it has 64 rows. A VAE that `model` accepts may have more convolutions.
    if folded.lowering.halves == "last_two" and doubling.margin < 32:
        up[before] = doubling
    folded.encoder.layers = nn.Sequential(start, *down[rest:])
    folded.decoder.layers = nn.Sequential(*up[:last], end)


def _places(kind: type[nn.Module], layers: list[nn.Module]) -> list[int]:
    """Which layers are of the kind, or have one in them."""
    return [i for i, x in enumerate(layers) if any(isinstance(m, kind) for m in x.modules())]


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
