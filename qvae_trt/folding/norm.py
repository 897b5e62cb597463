"""RMS norm over channels, in the forms that different kernels want."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.folding.weights import frozen
from qvae_trt.lowerings import Norm

#: The smallest positive fp16: keeps rsqrt finite where every channel is zero.
_TINY_FP16 = 2.0**-24
#: Gains outside this range stay in the norm: dividing the squares by gain² would leave too few bits
#: of them in fp16. The lowest counts against the root mean square of all gains, too.
_LOWEST_GAIN, _HIGHEST_GAIN = 2.0**-5, 4.0
#: The lowest and the highest gain by whose square `widen` divides.
_WIDE_GAINS = 0.5, 2.0


class RmsNorm(nn.Module):
    """x / rms(x) * gamma over channels, as diffusers' QwenImageRMS_norm, then SiLU if asked.

    Shapes: (B, C, H, W) → the same.
    """

    def __init__(self, gamma: Tensor, *, form: Norm, silu: bool) -> None:
        super().__init__()
        self.gamma = frozen(gamma.reshape(-1))
        self.form: Norm = "conv_spread" if form == "conv_wide" else form  # until `widen`
        self.silu = silu
        self.gain_is_before = False
        if form.startswith("conv_"):
            channels = self.gamma.numel()
            # A power of two is exact in fp16, and keeps the sum of C squares near their mean.
            weight = 2.0 ** -math.ceil(math.log2(channels))
            self.summing = frozen(torch.full((1, channels, 1, 1), weight))
            # rms = sqrt(sum / C) = sqrt(weighted sum / (weight * C)): the constant goes into gamma.
            gain = self.gamma.double() * math.sqrt(weight * channels)
            self.gain = frozen(gain.to(gamma.dtype).reshape(-1, 1, 1, 1))

    def move_gain_into(self, conv: nn.Conv2d) -> bool:
        """Let the convolution that makes this norm's input, and nothing else's, apply the gain.

        Returns: False, with nothing done, where the sum of squares, which must then divide by the
            gain's square, would leave what fp16 holds well.
        """
        size = self.gain.abs()
        least = _LOWEST_GAIN * max(1.0, float(size.square().mean().sqrt()))
        if float(size.min()) < least or float(size.max()) > _HIGHEST_GAIN:
            return False
        conv.weight.mul_(self.gain)
        cast("Tensor", conv.bias).mul_(self.gain.flatten())
        self.summing.div_(self.gain.square().reshape(1, -1, 1, 1))
        self.gain_is_before = True
        return True

    def widen(self) -> None:
        """Sum into every channel, divided by the square of its gain, where fp16 holds that well.

        Then root, product and SiLU are one kernel, and the norm has 3 in place of 6 or 7. In graphs
        with ranges TensorRT 8.6 reads one sum for each value faster than it repeats one for all
        channels (benchmarks/h200/README.md).
        """
        gain: Tensor = torch.ones_like(self.gain) if self.gain_is_before else self.gain
        if float(gain.min()) >= _WIDE_GAINS[0] and float(gain.max()) <= _WIDE_GAINS[1]:
            self.form, self.summing = "conv_wide", frozen(self.summing / gain.square())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(self, f"_{self.form}")(x)
        return F.silu(y) if self.silu else y

    def _native(self, x: Tensor) -> Tensor:
        # Channels last, the permuted view is contiguous, and one kernel does the whole norm.
        y = F.rms_norm(x.permute(0, 2, 3, 1), (x.shape[1],), self.gamma.to(x.dtype), eps=1e-24)
        return y.permute(0, 3, 1, 2)

    def _fp32(self, x: Tensor) -> Tensor:
        wide = x.float()
        # A sum, not a mean: TensorRT 8.6 reads ReduceSum's axes, not those of a later ReduceMean.
        sum_of_squares = (wide * wide).sum(1, keepdim=True)
        gain = self.gamma.float() * math.sqrt(self.gamma.numel())
        y = wide * torch.rsqrt(sum_of_squares + 1e-24) * gain.reshape(1, -1, 1, 1)
        return y.to(x.dtype)

    def _conv_spread(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        sums = F.conv2d(x * _unchanged(x), self.summing)
        # Flattened, the root is fused neither into that convolution nor into what follows.
        inverse = torch.rsqrt(sums.reshape(batch, 1, height * width) + _TINY_FP16)
        inverse = inverse.reshape(batch, 1, height, width)
        return x * (inverse if self.gain_is_before else F.conv2d(inverse, self.gain))

    def _conv_wide(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(F.conv2d(x * _unchanged(x), self.summing) + _TINY_FP16)


def _unchanged(x: Tensor) -> Tensor:
    """`x` by a clamp at its type's limits.

    TensorRT 8.6 makes of x * clamp(x) one fused kernel of one input; for x * x it reads x twice.
    """
    most = torch.finfo(x.dtype).max
    return x.clamp(-most, most)
