"""The folded network as convolutions without bias and a few kernels between them.

The bias of a convolution and the residual are added by the next norm, which reads the tensor
anyway (:class:`Stream`). So there is one pass over memory between two convolutions. A result is
written over its input where nothing else needs that: no more than three tensors of a level are
there at once.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.folding.attention import Attention
from qvae_trt.folding.network import Level as FoldedLevel
from qvae_trt.folding.network import ResidualBlock
from qvae_trt.folding.resample import DownsampleConv, UpsampleConv
from qvae_trt.folding.scaling import keep_squares_in_fp16
from qvae_trt.folding.shortcut import Average, Copies
from qvae_trt.folding.weights import frozen
from qvae_trt.lowerings import Lowering

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

    from diffusers import AutoencoderKLQwenImage

    from qvae_trt.folding import FoldedVae
    from qvae_trt.folding.norm import RmsNorm

#: What a product of two matrices takes at least on each side.
_LEAST = 16
#: Channels in and out of a 3x3 convolution → the channels out that it is filled up to with zeros,
#: since cuDNN has a faster kernel for that many: benchmarks/h100/convolutions.json.
FILLED = {(192, 384): 448, (576, 288): 320, (576, 576): 608, (1152, 576): 608}


@dataclass(frozen=True, slots=True)
class Means:
    """What `folding.shortcut.Average` does."""

    side: int
    frames: int
    group: int
    factor: float


@dataclass(frozen=True, slots=True)
class Copied:
    """What `folding.shortcut.Copies` does."""

    frames: int
    repeats: int
    factor: float


def apart(x: Tensor) -> tuple[int, bool]:
    """Elements from one pixel of a channels-last picture to the next in its row, and whether rows
    are further apart than their pixels take.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.shape[1], False
    pitch = x.stride(3) if x.shape[3] > 1 else x.shape[1]
    return pitch, x.shape[2] > 1 and x.stride(2) != pitch * x.shape[3]


def like(x: Tensor) -> Tensor:
    """Memory for another such picture, its pixels and rows together."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def room_for(x: Tensor) -> Tensor:
    """Where a result like x is written: over x, or elsewhere if its pixels or rows are apart."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else like(x)


def conv3x3(x: Tensor, weight: Tensor, channels: int) -> Tensor:
    """The first `channels` of a 3x3 convolution; pixels are apart if the weight has more."""
    y = F.conv2d(x, weight, padding=1)
    return y if len(weight) == channels else y[:, :channels]


def stem_weight(weight: Tensor) -> Tensor:
    """(C, colours, 3, 3) → (taps, C), padded with zeros to powers of two; row `tap * colours +
    colour`.
    """
    channels, colours = weight.shape[:2]
    return _padded(weight.permute(2, 3, 1, 0).reshape(9 * colours, channels))


def head_weight(weight: Tensor) -> Tensor:
    """(colours, C, 3, 3) → (C, taps), padded with zeros to powers of two; column `tap * colours +
    colour`.
    """
    colours, channels = weight.shape[:2]
    return _padded(weight.permute(1, 2, 3, 0).reshape(channels, 9 * colours))


def _padded(matrix: Tensor) -> Tensor:
    rows, columns = (max(_LEAST, 1 << (side - 1).bit_length()) for side in matrix.shape)
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


#: How the folded network is written before it is taken apart.
LOWERING = Lowering(upsample="conv_transpose")


@dataclass(slots=True)
class Stream:
    """A sum that is still to be made: x, a bias that the next layer knows, and `residual`.

    Attributes:
        x: (1, C, H, W), channels last.
        residual: like x; None if nothing is to be added.
        copied: how the residual becomes as large as x; None if it is.
        normal: the first norm of the next block, if it is there already.
    """

    x: Tensor
    residual: Tensor | None = None
    copied: Copied | None = None
    normal: Tensor | None = None

    def take(self) -> tuple[Tensor, Tensor | None]:
        """Its tensors, which it then no longer holds."""
        x, residual = self.x, self.residual
        del self.x
        self.residual = None
        return x, residual


class Block(nn.Module):
    """A residual block.

    Args:
        block: the folded one.
        bias: (C,), still to be added to x when it comes.
        alone: no residual comes with x, and its rows are together: x itself is then the block's
            residual, and its bias goes on to the next layer.
    """

    def __init__(self, block: ResidualBlock, bias: Tensor, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone
        self.bias = frozen(bias)
        self.gain1, self.weight1, self.bias1 = _gain(block.norm1), *_filled(block.conv1)
        self.gain2, self.weight2, self.bias2 = _gain(block.norm2), *_filled(block.conv2)
        self.shortcut: nn.Parameter | None = None
        left = self.bias if alone else torch.zeros_like(self.bias)
        if not isinstance(block.shortcut, nn.Identity):
            self.shortcut, shortcut_bias = _parameters(block.shortcut)
            left = self.shortcut.flatten(1) @ left + shortcut_bias
        self.left = frozen(self.bias2 + left)

    def forward(self, kernels: ModuleType, stream: Stream) -> Tensor:
        """Returns what went in, which nothing writes over; without its bias, if `alone`."""
        normal, stream.normal = stream.normal, None
        copied, stream.copied = stream.copied, None
        total, residual = stream.take()
        if normal is None:
            x = total
            normal, total = like(x), room_for(x)
            kernels.sum_norm(
                x, self.bias, self.gain1,
                residual=residual, copied=copied, total=None if self.alone else total, out=normal,
            )  # fmt: skip
            del x, residual
        channels = len(self.bias1)
        y = conv3x3(normal, self.weight1, channels)
        del normal
        normal = room_for(y)
        kernels.sum_norm(y, self.bias1, self.gain2, out=normal)
        del y
        stream.x = conv3x3(normal, self.weight2, channels)
        del normal
        stream.residual = total if self.shortcut is None else F.conv2d(total, self.shortcut)
        return total


class AttentionBlock(nn.Module):
    """Attention over all pixels, with its norm and the sum with its input."""

    def __init__(self, block: Attention, bias: Tensor) -> None:
        super().__init__()
        self.bias, self.gain = frozen(bias), _gain(block.norm)
        layers = (block.query, block.key, block.value)
        self.weight = frozen(torch.cat([layer.weight for layer in layers]))
        self.projected_bias = frozen(torch.cat([cast("Tensor", layer.bias) for layer in layers]))
        self.proj, self.left = _parameters(block.proj)

    def forward(self, kernels: ModuleType, stream: Stream) -> None:
        x, residual = stream.take()
        normal, total = like(x), room_for(x)
        kernels.sum_norm(
            x, self.bias, self.gain, residual=residual, total=total, out=normal, silu=False
        )
        _, channels, height, width = normal.shape
        tokens = normal.permute(0, 2, 3, 1).reshape(-1, channels)
        mixed = kernels.attend(F.linear(tokens, self.weight, self.projected_bias))
        y = F.linear(mixed, self.proj).reshape(1, height, width, channels)
        stream.x, stream.residual = y.permute(0, 3, 1, 2), total


class Resample(nn.Module):
    """Half or twice the sides, by one convolution."""

    def __init__(self, layer: UpsampleConv | DownsampleConv, bias: Tensor) -> None:
        super().__init__()
        self.up = isinstance(layer, UpsampleConv)
        self.bias = frozen(bias)
        self.weight, self.left = _parameters(layer.conv)

    def forward(self, kernels: ModuleType, stream: Stream) -> None:
        x, residual = stream.take()
        total = room_for(x)
        kernels.sum_norm(x, self.bias, residual=residual, total=total)
        del x, residual
        if self.up:
            stream.x = F.conv_transpose2d(total, self.weight, stride=2, padding=1)
        else:
            # Padding belongs below and to the right only. Two rows and columns on all sides make
            # rows and columns around those that are wanted; nothing is copied.
            height, width = total.shape[2] // 2, total.shape[3] // 2
            x = F.conv2d(total, self.weight, stride=2, padding=2)
            stream.x = x[:, :, 1 : 1 + height, 1 : 1 + width]


class Level(nn.Module):
    """Blocks and a resampling, if any, with a shortcut around all of them.

    Args:
        level: the folded one, which has a shortcut.
        bias, alone: as for the first block.
    """

    def __init__(self, level: FoldedLevel, bias: Tensor, *, alone: bool) -> None:
        super().__init__()
        # The shortcut takes the whole sum.
        alone = alone and not bool(bias.any())
        self.blocks, self.left = _middle(level.blocks, bias, alone=alone)
        self.resample: Resample | None = None
        if not isinstance(level.resample, nn.Identity):
            layer = cast("UpsampleConv | DownsampleConv", level.resample)
            self.resample = Resample(layer, self.left)
            self.left = self.resample.left
        else:
            self.bias = self.left
            self.left = frozen(torch.zeros_like(self.left))
        self.means: Means | None = None
        self.copied: Copied | None = None
        shortcut = level.shortcut
        if isinstance(shortcut, Copies):
            self.copied = Copied(shortcut.frames, shortcut.repeats, shortcut.factor)
        elif isinstance(shortcut, Average) and shortcut.conv is not None:
            self.means = Means(shortcut.side, shortcut.frames, shortcut.group, shortcut.factor)

    def forward(self, kernels: ModuleType, stream: Stream) -> None:
        first, *others = self.blocks
        around = first(kernels, stream)
        if self.means is not None:
            around = kernels.average(around, self.means)
        for block in others:
            block(kernels, stream)
        if self.resample is not None:
            self.resample(kernels, stream)
        else:
            x, residual = stream.take()
            stream.x = room_for(x)
            kernels.sum_norm(x, self.bias, residual=residual, total=stream.x)
        stream.residual, stream.copied = around, self.copied


class Encoder(nn.Module):
    """Pictures to moments."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first, *middle, norm, last = layers
        weight, self.stem_bias = _parameters(first)
        self.stem = frozen(stem_weight(weight))
        # The stem adds its bias itself.
        self.layers, self.bias = _middle(middle, torch.zeros_like(self.stem_bias))
        self.gain = _gain(cast("RmsNorm", norm))
        self.last, self.last_bias = _parameters(last)

    def forward(self, kernels: ModuleType, picture: Tensor) -> Tensor:
        """(1, C, H, W) in [-1, 1] → moments (1, 2z, H/s, W/s)."""
        first = self.layers[0]
        first = cast("Block", first.blocks[0] if isinstance(first, Level) else first)
        normal, x = kernels.stem(picture, self.stem, self.stem_bias, first.gain1)
        stream = Stream(x, normal=normal)
        del normal, x
        for layer in self.layers:
            layer(kernels, stream)
        x, residual = stream.take()
        normal = room_for(x)
        kernels.sum_norm(x, self.bias, self.gain, residual=residual, out=normal)
        return F.conv2d(normal, self.last, self.last_bias, padding=1)


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        quant, first, *middle, norm, last = layers
        self.quant, self.quant_bias = _parameters(quant)
        self.first, bias = _parameters(first)
        self.layers, self.bias = _middle(middle, bias)
        self.gain = _gain(cast("RmsNorm", norm))
        weight, self.last_bias = _parameters(last)
        self.head = frozen(head_weight(weight))
        attention = next(layer for layer in self.layers if isinstance(layer, AttentionBlock))
        self.attention_channels = attention.gain.numel()

    def forward(self, kernels: ModuleType, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """Un-normalised (1, z, h, w) → (1, C, s h, s w) in [-1, 1]."""
        z = latents.to(self.first.dtype, memory_format=torch.channels_last)
        z = F.conv2d(z, self.quant, self.quant_bias)
        stream = Stream(F.conv2d(z, self.first, padding=1))
        for layer in self.layers:
            layer(kernels, stream)
        x, residual = stream.take()
        return kernels.head(
            x, self.bias, self.gain, self.head, self.last_bias, residual=residual, dtype=dtype
        )


class FusedVae(nn.Module):
    """Encoder and decoder of one picture, with the 5-D tensors of diffusers and of the engines.

    Args:
        folded: with `LOWERING`; stays as it is.
        vae: what it was folded from.
        kernels: `fused.kernels`, or something with its functions.
    """

    def __init__(self, folded: FoldedVae, vae: AutoencoderKLQwenImage, kernels: ModuleType) -> None:
        super().__init__()
        folded = copy.deepcopy(folded)
        with torch.no_grad():
            keep_squares_in_fp16(folded, vae)
            self.encoder = Encoder(list(folded.encoder.layers))
            self.decoder = Decoder(list(folded.decoder.layers))
        self.kernels = kernels
        self.requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, object]) -> FusedVae:
        """A network with weights of its own; the kernels are the same."""
        twin = type(self).__new__(type(self))
        memo.update({id(self): twin, id(self.kernels): self.kernels})
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.decoder.first.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        """(1, C, 1, H, W) in [-1, 1], any floating dtype → moments (1, 2z, 1, H/s, W/s)."""
        return self.encoder(self.kernels, pixels.squeeze(2)).unsqueeze(2)

    def decode(self, latents: Tensor) -> Tensor:
        """Un-normalised (1, z, 1, h, w) → (1, C, 1, s h, s w) in [-1, 1], in the latents' dtype."""
        return self.decoder(self.kernels, latents.squeeze(2), latents.dtype).unsqueeze(2)


def _middle(
    layers: Iterable[nn.Module], bias: Tensor, *, alone: bool = True
) -> tuple[nn.ModuleList, nn.Parameter]:
    """The layers between the two ends, and what is to be added after the last of them.

    Args:
        layers: of the folded network.
        bias: of what comes first.
        alone: as :class:`Block` has it, of the first.
    """
    made: list[nn.Module] = []
    for layer in _without_empty_levels(layers):
        fused: Block | AttentionBlock | Resample | Level
        if isinstance(layer, ResidualBlock):
            fused = Block(layer, bias, alone=alone)
        elif isinstance(layer, Attention):
            fused = AttentionBlock(layer, bias)
        elif isinstance(layer, FoldedLevel):
            fused = Level(layer, bias, alone=alone)
        else:
            fused = Resample(cast("UpsampleConv | DownsampleConv", layer), bias)
        made.append(fused)
        bias = fused.left
        alone = isinstance(layer, UpsampleConv)
    return nn.ModuleList(made), frozen(bias)


def _without_empty_levels(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """A level without a shortcut is its blocks and its resampling."""
    for layer in layers:
        if not isinstance(layer, FoldedLevel) or layer.shortcut is not None:
            yield layer
            continue
        yield from layer.blocks
        if not isinstance(layer.resample, nn.Identity):
            yield layer.resample


def _gain(norm: RmsNorm) -> nn.Parameter:
    return frozen(norm.gamma)


def _parameters(layer: object) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight and bias of a convolution or linear layer; the former channels last."""
    module = cast("nn.Conv2d", layer)
    weight = module.weight
    if weight.ndim == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(weight, requires_grad=False), frozen(cast("Tensor", module.bias))


def _filled(layer: object) -> tuple[nn.Parameter, nn.Parameter]:
    """Like `_parameters`; the weight has zeros for the channels that it is filled up to."""
    weight, bias = _parameters(layer)
    out, channels = weight.shape[:2]
    zeros = (0, 0, 0, 0, 0, 0, 0, FILLED.get((channels, out), out) - out)
    return frozen(F.pad(weight, zeros).contiguous(memory_format=torch.channels_last)), bias
