"""The exact single-frame 2D graph of the Qwen-Image VAE.

A picture is one frame. Before it, a causal Conv3d pads zero frames only, so that just the last temporal slice of each
kernel meets data: the layer *is* a Conv2d with that slice. The temporal convolutions of the resamplers never run on a
first frame. What is left has 42 % of the decoder's arithmetic and 41 % of the encoder's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.errors import ModelError
from qvae_trt.lowerings import FUSED, PYTORCH, Lowering, Norm, Upsample

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

#: Queries, keys and values are padded to a multiple of this: 16-byte rows of fp16 scores, which fast GEMMs need.
_TOKEN_ALIGNMENT = 8
#: 2**-24, the smallest positive fp16: keeps rsqrt finite where every channel is zero, without moving any other result.
_TINY_FP16 = 2.0**-24
#: Root mean square that a prescaled activation is brought to (see :meth:`RmsNorm.prescale_for`).
_TARGET_RMS = 2.0


class RmsNorm(nn.Module):
    """x / rms(x) * gamma over channels, as diffusers' QwenImageRMS_norm, followed by SiLU if asked.

    Shapes: (B, C, H, W) → the same.
    """

    def __init__(self, gamma: Tensor, *, form: Norm, silu: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(gamma.detach().reshape(-1).clone(), requires_grad=False)
        self.form: Norm = form
        self.silu = silu
        self.prescale = 1.0
        if form == "conv":
            channels = self.gamma.numel()
            # A power of two is exact in fp16, and keeps the sum of C squares near their mean.
            self.weight_of_square = 2.0 ** -math.ceil(math.log2(channels))
            self.ones = nn.Parameter(
                torch.full((1, channels, 1, 1), self.weight_of_square), requires_grad=False
            )

    def prescale_for(self, rms: float) -> None:
        """Choose the power of two that brings activations of this root mean square near 2.

        Squares in fp16 then overflow only 100 times above and lose bits only 500 times below what was seen.
        """
        self.prescale = (
            2.0 ** round(math.log2(_TARGET_RMS / rms)) if math.isfinite(rms) and rms > 0 else 1.0
        )

    def forward(self, x: Tensor) -> Tensor:
        y = getattr(self, f"_{self.form}")(x)
        return F.silu(y) if self.silu else y

    def _native(self, x: Tensor) -> Tensor:
        # Channels last, the permuted view is contiguous, and one kernel does the whole norm.
        y = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.gamma.to(x.dtype), eps=1e-24)
        return y.permute(0, 3, 1, 2)

    def _fp32(self, x: Tensor) -> Tensor:
        wide = x.float()
        # A sum, not a mean: TensorRT 8.6 reads ReduceSum's axes, not those of ReduceMean from opset 18.
        sum_of_squares = (wide * wide).sum(1, keepdim=True)
        gain = self.gamma.float() * math.sqrt(self.gamma.numel())
        y = wide * torch.rsqrt(sum_of_squares + 1e-24) * gain.reshape(1, -1, 1, 1)
        return y.to(x.dtype)

    def _conv(self, x: Tensor) -> Tensor:
        y = x * self.prescale
        weighted_sum = F.conv2d(y * y, self.ones)
        # rms = sqrt(sum / C) = sqrt(weighted_sum / (w * C)): the constant goes into gamma.
        gain = self.gamma.float() * math.sqrt(self.weight_of_square * self.gamma.numel())
        return y * torch.rsqrt(weighted_sum + _TINY_FP16) * gain.to(x.dtype).reshape(1, -1, 1, 1)


class ResidualBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, plus a shortcut. (B, C, H, W) → (B, C', H, W)."""

    def __init__(self, block: nn.Module, lowering: Lowering) -> None:
        super().__init__()
        self.norm1 = RmsNorm(_tensor(block, "norm1.gamma"), form=lowering.norm, silu=True)
        self.conv1 = fold_conv(block.conv1)
        self.norm2 = RmsNorm(_tensor(block, "norm2.gamma"), form=lowering.norm, silu=True)
        self.conv2 = fold_conv(block.conv2)
        shortcut = block.conv_shortcut
        self.shortcut = nn.Identity() if isinstance(shortcut, nn.Identity) else fold_conv(shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        return cast(Tensor, y + self.shortcut(x))


class Attention(nn.Module):
    """One head over all pixels, plus the identity. (B, C, H, W) → the same.

    With `attention_chunks` > 0 the queries are cut into that many runs, so that the scores held at once are
    (N / chunks) x N and never N x N.
    """

    def __init__(self, block: nn.Module, lowering: Lowering) -> None:
        super().__init__()
        self.norm = RmsNorm(_tensor(block, "norm.gamma"), form=lowering.norm, silu=False)
        channels = self.norm.gamma.numel()
        weight, bias = (_tensor(block, f"to_qkv.{name}") for name in ("weight", "bias"))
        weights = weight.reshape(3, channels, channels).clone()
        biases = bias.reshape(3, channels).clone()
        if lowering.attention_chunks != FUSED:
            weights[0] /= math.sqrt(channels)
            biases[0] /= math.sqrt(channels)
        self.query, self.key, self.value = (
            _linear(w, b) for w, b in zip(weights, biases, strict=True)
        )
        self.proj = _linear(_tensor(block, "proj.weight").flatten(1), _tensor(block, "proj.bias"))
        self.chunks = lowering.attention_chunks

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        if self.chunks == FUSED:
            mixed = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[
                :, 0
            ]
        else:
            mixed = attend_in_chunks(query, key, value, self.chunks)
        y = self.proj(mixed).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + y


def attend_in_chunks(query: Tensor, key: Tensor, value: Tensor, chunks: int) -> Tensor:
    """softmax(query @ key.T) @ value, `chunks` runs of queries at a time.

    Args:
        query: (B, N, C), already scaled by 1 / sqrt(C).
        key, value: (B, N, C).
        chunks: how many runs; clipped to N.

    Returns:
        (B, N, C).
    """
    tokens = query.shape[1]
    key, value, mask = _align_tokens(key, value)
    transposed = key.transpose(1, 2)
    runs = []
    for index in range(chunks):
        start, stop = tokens * index // chunks, tokens * (index + 1) // chunks
        scores = query[:, start:stop] @ transposed
        if mask is not None:
            scores = scores + mask
        runs.append(torch.softmax(scores, dim=-1) @ value)
    return torch.cat(runs, dim=1) if chunks > 1 else runs[0]


def _align_tokens(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pad keys and values to whole 16-byte rows, with the mask that takes the padding out of the softmax.

    A size known only at run time is left as it is.
    """
    batch, tokens, channels = key.shape
    padding = -tokens % _TOKEN_ALIGNMENT if isinstance(tokens, int) else 0
    if padding == 0:
        return key, value, None
    blank = key.new_zeros(batch, padding, channels)
    hidden = key.new_full((1, 1, padding), torch.finfo(torch.float16).min)
    mask = torch.cat([key.new_zeros(1, 1, tokens), hidden], dim=2)
    return torch.cat([key, blank], dim=1), torch.cat([value, blank], dim=1), mask


class UpsampleConv(nn.Module):
    """Nearest 2x upsampling and a 3x3 convolution. (B, C, H, W) → (B, C', 2H, 2W)."""

    def __init__(self, conv: nn.Conv2d, form: Upsample) -> None:
        super().__init__()
        self.form: Upsample = form
        weight, bias = conv.weight.detach().float(), cast(Tensor, conv.bias).detach()
        self.conv: nn.Module
        if form == "resize":
            self.conv = _conv2d(weight, bias, padding=1)
        elif form == "conv_transpose":
            self.conv = _conv_transpose(weight, bias)
        else:
            self.conv = _conv2d(_phases(weight), bias.repeat_interleave(4), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "resize":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        y = cast(Tensor, self.conv(x))
        return F.pixel_shuffle(y, 2) if self.form == "depth_to_space" else y


def _spread(taps: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3 taps on the doubled axis → the 4 taps of a stride-2 transposed convolution on the original one.

    Output 2i + p reads inputs i-1, i, i+1; a doubled pixel is read by two neighbouring taps, so their weights add.
    """
    before, centre, after = taps
    return after, centre + after, before + centre, before


def _conv_transpose(weight: Tensor, bias: Tensor) -> nn.ConvTranspose2d:
    rows = torch.stack(_spread(cast("tuple[Tensor, Tensor, Tensor]", weight.unbind(2))), dim=2)
    taps = torch.stack(_spread(cast("tuple[Tensor, Tensor, Tensor]", rows.unbind(3))), dim=3)
    layer = nn.ConvTranspose2d(weight.shape[1], weight.shape[0], 4, stride=2, padding=1)
    layer.weight = nn.Parameter(taps.transpose(0, 1).contiguous(), requires_grad=False)
    layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def _phases(weight: Tensor) -> Tensor:
    """(O, I, 3, 3) on the doubled grid → (4 * O, I, 3, 3) on the original one, in pixel_shuffle's channel order."""
    zero = torch.zeros_like(weight[:, :, 0])

    def split(
        axis_taps: tuple[Tensor, ...], blank: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        before, centre, after = axis_taps
        return (before, centre + after, blank), (blank, before + centre, after)

    kernels = []
    for rows in split(weight.unbind(2), zero):
        by_row = torch.stack(rows, dim=2)
        for columns in split(by_row.unbind(3), torch.zeros_like(by_row[:, :, :, 0])):
            kernels.append(torch.stack(columns, dim=3))
    return torch.stack(kernels, dim=1).flatten(0, 1)


class DownsampleConv(nn.Module):
    """3x3 convolution of stride 2, padded below and to the right only. (B, C, H, W) → (B, C, H/2, W/2)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = _conv2d(conv.weight, cast(Tensor, conv.bias), stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Encoder(nn.Module):
    """(B, C, H, W) in [-1, 1] → moments (B, 2z, H/8, W/8), mean first."""

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        source = vae.encoder
        layers = [fold_conv(source.conv_in)]
        layers += [_fold_block(block, lowering) for block in source.down_blocks]
        layers += _mid_blocks(source.mid_block, lowering)
        layers += [
            RmsNorm(_tensor(source, "norm_out.gamma"), form=lowering.norm, silu=True),
            _merge_pointwise(fold_conv(source.conv_out), fold_conv(vae.quant_conv)),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class Decoder(nn.Module):
    """Un-normalised latents (B, z, h, w) → (B, C, 8h, 8w), clamped to [-1, 1]."""

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        source = vae.decoder
        layers = [fold_conv(vae.post_quant_conv), fold_conv(source.conv_in)]
        layers += _mid_blocks(source.mid_block, lowering)
        for block in source.up_blocks:
            layers += [_fold_block(resnet, lowering) for resnet in block.resnets]
            layers += [_fold_block(resample, lowering) for resample in block.upsamplers or ()]
        layers += [
            RmsNorm(_tensor(source, "norm_out.gamma"), form=lowering.norm, silu=True),
            fold_conv(source.conv_out),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return cast(Tensor, self.layers(z).clamp(-1.0, 1.0))


class FoldedVae(nn.Module):
    """Encoder and decoder of one frame, with the five-dimensional tensors of diffusers and of the engines."""

    def __init__(self, vae: AutoencoderKLQwenImage, lowering: Lowering) -> None:
        super().__init__()
        self.encoder = Encoder(vae, lowering)
        self.decoder = Decoder(vae, lowering)
        self.lowering = lowering

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, C, 1, H, W) in [-1, 1] → moments (B, 2z, 1, H/8, W/8)."""
        return cast(Tensor, self.encoder(pixels.squeeze(2)).unsqueeze(2))

    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalised (B, z, 1, h, w) → (B, C, 1, 8h, 8w) in [-1, 1]."""
        return cast(Tensor, self.decoder(latents.squeeze(2)).unsqueeze(2))


def fold(vae: AutoencoderKLQwenImage, *, lowering: Lowering = PYTORCH) -> FoldedVae:
    """The single-frame 2D network of `vae`, with copies of its weights, in eval mode.

    Args:
        vae: diffusers' AutoencoderKLQwenImage, RGB or RGBA, of any width.
        lowering: how the graph is written; the function computed is the same.

    Raises:
        ModelError: `vae` has a layer that this fold does not know.
    """
    with torch.no_grad():
        folded = FoldedVae(vae, lowering).eval().requires_grad_(False)
        if lowering.norm == "conv":
            _calibrate_prescales(folded, vae)
    return folded


def fold_conv(conv: nn.Module) -> nn.Conv2d:
    """The Conv2d that a causal Conv3d is on a first frame: its last temporal slice."""
    weight, bias = _tensor(conv, "weight"), _tensor(conv, "bias")
    if weight.ndim != 5 or getattr(conv, "stride", None) != (1, 1, 1):
        raise ModelError(f"cannot fold {conv}: expected a causal Conv3d of stride 1")
    height, width = weight.shape[-2:]
    return _conv2d(weight[:, :, -1], bias, padding=(height // 2, width // 2))


def _fold_block(block: nn.Module, lowering: Lowering) -> nn.Module:
    kind = type(block).__name__
    if kind == "QwenImageResidualBlock":
        return ResidualBlock(block, lowering)
    if kind == "QwenImageAttentionBlock":
        return Attention(block, lowering)
    if kind == "QwenImageResample":
        resample = cast(nn.Sequential, block.resample)
        conv = cast(nn.Conv2d, resample[1])
        if str(block.mode).startswith("upsample"):
            return UpsampleConv(conv, lowering.upsample)
        return DownsampleConv(conv)
    raise ModelError(
        f"cannot fold a {kind}", fix="expected the layers of diffusers' AutoencoderKLQwenImage"
    )


def _mid_blocks(mid: nn.Module, lowering: Lowering) -> list[nn.Module]:
    resnets, attentions = cast(nn.ModuleList, mid.resnets), cast(nn.ModuleList, mid.attentions)
    blocks = [_fold_block(resnets[0], lowering)]
    for attention, resnet in zip(attentions, list(resnets)[1:], strict=True):
        blocks += [_fold_block(attention, lowering), _fold_block(resnet, lowering)]
    return blocks


def _merge_pointwise(conv: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """One layer for a convolution and the 1x1 convolution that follows it."""
    matrix = pointwise.weight.flatten(1).double()
    weight = torch.einsum("oi,ichw->ochw", matrix, conv.weight.double())
    bias = matrix @ cast(Tensor, conv.bias).double() + cast(Tensor, pointwise.bias).double()
    return _conv2d(weight.to(conv.weight.dtype), bias.to(conv.weight.dtype), padding=1)


def _calibrate_prescales(folded: FoldedVae, vae: AutoencoderKLQwenImage) -> None:
    """Set every norm's prescale from one small pass in float32 over seeded noise with the latents' own statistics."""
    generator = torch.Generator().manual_seed(0)
    mean, std = (
        torch.tensor(values).reshape(1, -1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    latents = torch.randn((1, vae.config.z_dim, 16, 16), generator=generator) * std + mean
    channels = folded.encoder.layers[0].in_channels
    pixels = F.interpolate(
        torch.rand((1, cast(int, channels), 32, 32), generator=generator) * 2 - 1,
        size=(128, 128),
        mode="bilinear",
    )

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        cast(RmsNorm, norm).prescale_for(float(inputs[0].double().square().mean().sqrt()))

    norms = [module for module in folded.modules() if isinstance(module, RmsNorm)]
    hooks = [norm.register_forward_pre_hook(observe) for norm in norms]
    dtype = vae.dtype
    folded.float()
    folded.encoder(pixels)
    folded.decoder(latents)
    folded.to(dtype)
    for hook in hooks:
        hook.remove()


def _tensor(module: nn.Module, path: str) -> Tensor:
    try:
        value = module.get_parameter(path)
    except AttributeError as error:
        raise ModelError(f"cannot fold a {type(module).__name__}: it has no {path}") from error
    return value.detach()


def _conv2d(
    weight: Tensor, bias: Tensor, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> nn.Conv2d:
    out_channels, in_channels, height, width = weight.shape
    layer = nn.Conv2d(in_channels, out_channels, (height, width), stride=stride, padding=padding)
    layer.weight = nn.Parameter(weight.detach().contiguous().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.detach().contiguous().clone(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
