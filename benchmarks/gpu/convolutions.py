"""What cuDNN takes for 3x3 convolutions of the fused path, and for more channels than they have.

usage: python benchmarks/gpu/convolutions.py --out convolutions.json

Some numbers of channels have no fast kernel; filled up with zeros to a number that has one, the
same convolution is faster. `qvae_trt.fused.network.FILLED` is made from these figures. float16,
channels last, milliseconds between two CUDA events, median of 9 runs after 3.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from recording import record
from torch.nn import functional as F

from qvae_trt.bench.timing import cuda_clock

#: Channels in and out, and the side of the picture: of Qwen-Image at 1328x1328, of Qwen-Image-2.1
#: at 2048x2048 (its decoder, then its encoder).
SHAPES = (
    *((96, 96, 1328), (192, 192, 664), (384, 384, 332), (384, 384, 166), (192, 384, 332)),
    *((144, 144, 2048), (288, 144, 2048), (288, 288, 1024), (576, 288, 1024), (576, 576, 512)),
    *((1152, 576, 512), (1152, 1152, 256), (1152, 1152, 128)),
    *((96, 192, 1024), (192, 384, 512), (384, 768, 256), (768, 768, 256), (768, 768, 128)),
)
#: How many channels are tried beyond those that are wanted.
MORE = (0, 16, 32, 64, 128)
RUNS, WARM_UP = 9, 3


def milliseconds(channels: int, out: int, side: int) -> float:
    x = random(1, channels, side, side)
    weight = random(out, channels, 3, 3)
    convolve = partial(F.conv2d, x, weight, padding=1)
    taken = [cuda_clock(convolve)[0] for _ in range(WARM_UP + RUNS)]
    return round(statistics.median(taken[WARM_UP:]), 3)


def random(*shape: int) -> torch.Tensor:
    x = torch.randn(shape, device="cuda", dtype=torch.float16)
    return x.contiguous(memory_format=torch.channels_last)


def measure() -> list[dict[str, Any]]:
    return [
        {
            "channels": [channels, out],
            "side": side,
            "milliseconds": {
                str(out + more): milliseconds(channels, out + more, side) for more in MORE
            },
        }
        for channels, out, side in SHAPES
    ]


if __name__ == "__main__":
    record("convolutions", measure, about=__doc__)
