"""The arithmetic floor: how long the folded graph's products alone would take at this device's
matmul rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLQwenImage
from torch.utils.flop_counter import FlopCounterMode

from qvae_trt.bench.results import Fact, Timing
from qvae_trt.bench.timing import clock_for
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.lowerings import Lowering
from qvae_trt.profiles import Part

_SIDE = {"cuda": 8192, "cpu": 1024}
_REPEATS = 10


def on_meta(vae: AutoencoderKLQwenImage) -> FoldedVae:
    """The folded graph of this architecture without weights: counting a 1920x1920 decode then takes
    no memory.

    Upsampling is written as resize + convolution and attention as plain products, so that the floor
    stays the same whichever lowering an engine was built with.
    """
    plain = Lowering(upsample="resize", norm="native", attention="softmax", attention_chunks=1)
    with torch.device("meta"):
        return fold(type(vae).from_config(vae.config), lowering=plain)


def count_flops(module: FoldedVae, part: Part, shape: Sequence[int]) -> int:
    """FLOPs (two a multiply-add) of convolutions and matrix products in one `encode` or `decode`.

    module: what `on_meta` made; shape: of the input.
    """
    value = torch.empty(tuple(shape), device="meta")
    call = module.encode if part == "encoder" else module.decode
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call(value)
    return int(counter.get_total_flops())


def matmul_rate(device: str, dtype: torch.dtype) -> dict[str, Fact]:
    """TFLOP/s of one square product: 8192³ on a GPU, 1024³ on a CPU, the fastest of ten after a
    warm-up.
    """
    side = _SIDE[device]
    generator = torch.Generator(device=device).manual_seed(0)
    left, right = (
        torch.randn(side, side, device=device, generator=generator).to(dtype) for _ in range(2)
    )
    clock = clock_for(device)
    samples = [clock(lambda: torch.mm(left, right))[0] for _ in range(_REPEATS + 3)][3:]
    timing = Timing.of(samples)
    return {
        "tflops": 2.0 * side**3 / timing.min_ms / 1e9,
        "side": side,
        "dtype": str(dtype).removeprefix("torch."),
        "median_ms": timing.median_ms,
        "min_ms": timing.min_ms,
    }
