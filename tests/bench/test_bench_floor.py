"""The floor: operations counted by hand, and the rate of this device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvae_trt.bench.floor import count_flops, matmul_rate, on_meta


def test_flops_are_those_counted_by_hand() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1, device="meta")

        def encode(self, value: torch.Tensor) -> torch.Tensor:
            return self.conv(value[:, :, 0])

    flops = count_flops(Plain(), "encoder", (1, 3, 1, 16, 24))  # type: ignore[arg-type]
    assert flops == 2 * 16 * 24 * 8 * 3 * 9


def test_flops_of_the_full_architecture() -> None:
    """Against the sums over its layers: 8.39 and 5.27 TFLOP at 1328x1328."""
    from diffusers import AutoencoderKLQwenImage

    with torch.device("meta"):
        folded = on_meta(AutoencoderKLQwenImage())
    size, latents = (1328, 1328), (166, 166)
    assert count_flops(folded, "decoder", (1, 16, 1, *latents)) / 1e12 == pytest.approx(
        8.39, abs=0.01
    )
    assert count_flops(folded, "encoder", (1, 3, 1, *size)) / 1e12 == pytest.approx(5.27, abs=0.01)


def test_the_matmul_rate_is_of_this_device() -> None:
    rate = matmul_rate("cpu", torch.float32)
    assert rate["side"] == 1024
    assert rate["dtype"] == "float32"
    # 1 GFLOP/s is slower than any CPU of this century; 100 TFLOP/s is more than any has.
    assert 0.001 < float(rate["tflops"] or 0) < 100
