"""What cuDNN takes for 3x3 convolutions of the fused path, and for more channels than they have.

usage: python benchmarks/gpu/convolutions.py --out convolutions.json

Some numbers of channels have no fast kernel; filled up with zeros to a number that has one, the
same convolution is faster. `qvae_trt.fused.network.FILLED` is made from these figures. float16,
channels last, milliseconds between two CUDA events, median of 9 runs after 3.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from qvae_trt.bench.machine import machine_facts, version_facts

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
    taken = []
    for _ in range(WARM_UP + RUNS):
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        F.conv2d(x, weight, padding=1)
        ended.record()
        torch.cuda.synchronize()
        taken.append(begun.elapsed_time(ended))
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    facts = {"machine": machine_facts("cuda"), "versions": version_facts("cuda")}
    out.write_text(json.dumps({"convolutions": measure(), **facts}, indent=1) + "\n", "utf-8")
    print(out.read_text("utf-8"))


if __name__ == "__main__":
    main()
