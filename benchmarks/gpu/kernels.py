"""Each kernel of the fused path alone, against its floor.

    python benchmarks/gpu/kernels.py --out kernels

Writes kernels.json and kernels.md. The floor of a kernel is the larger of two times: the bytes that
it must move at the rate of a large copy, and its arithmetic at the rate of a large product. Both
rates are measured first.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from triton.testing import do_bench

from qvae_trt.bench.machine import machine_facts, version_facts
from qvae_trt.fused import kernels
from qvae_trt.fused.network import head_weight, like, stem_weight

if TYPE_CHECKING:
    from collections.abc import Callable

#: A level of the full network at 1328x1328: channels and side.
LEVELS = ((96, 1328), (192, 664), (384, 332), (384, 166))
DTYPE, DEVICE = torch.float16, "cuda"


def median_ms(call: Callable[[], object]) -> float:
    return float(do_bench(call, warmup=25, rep=150, return_mode="median"))


def picture(channels: int, side: int) -> torch.Tensor:
    x = torch.randn((1, channels, side, side), device=DEVICE, dtype=DTYPE)
    return x.to(memory_format=torch.channels_last)


def vector(channels: int) -> torch.Tensor:
    return torch.randn(channels, device=DEVICE, dtype=DTYPE)


class Table:
    """Rows of a kernel, its shape, its milliseconds and its share of the floor."""

    def __init__(self) -> None:
        self.bytes_per_ms = _copied_bytes_per_ms()
        a = torch.randn(8192, 8192, device=DEVICE, dtype=DTYPE)
        self.flops_per_ms = 2 * 8192**3 / median_ms(lambda: a @ a)
        self.rows: list[dict[str, Any]] = []

    def measure(
        self, name: str, shape: str, call: Callable[[], object], *, moved: int, flops: int = 0
    ) -> None:
        floor_ms = max(moved / self.bytes_per_ms, flops / self.flops_per_ms)
        call()
        found_ms = median_ms(call)
        row = {"kernel": name, "shape": shape, "ms": found_ms, "floor_ms": floor_ms}
        self.rows.append(row | {"bytes": moved, "flops": flops, "share": floor_ms / found_ms})

    def markdown(self) -> str:
        copied, multiplied = self.bytes_per_ms / 1e9, self.flops_per_ms / 1e9
        rates = f"Copy {copied:.2f} TB/s, product {multiplied:.0f} TFLOP/s."
        lines = [rates, "", "| kernel | shape | ms | floor | share |", "|---|---|--:|--:|--:|"]
        lines += [
            f"| {row['kernel']} | {row['shape']} | {row['ms']:.3f} | {row['floor_ms']:.3f} |"
            f" {row['share']:.2f} |"
            for row in self.rows
        ]
        return "\n".join(lines) + "\n"


def _copied_bytes_per_ms() -> float:
    x, y = (torch.empty(2**30, device=DEVICE, dtype=DTYPE) for _ in range(2))
    return 4 * x.numel() / median_ms(lambda: y.copy_(x))


def norms(table: Table) -> None:
    for channels, side in LEVELS:
        _norms_at(table, channels, side)


def _norms_at(table: Table, channels: int, side: int) -> None:
    x, residual, out = (picture(channels, side) for _ in range(3))
    bias, gain = vector(channels), vector(channels)
    size = 2 * x.numel()
    shape = f"{channels}x{side}x{side}"
    table.measure("PyTorch's copy", shape, lambda: out.copy_(x), moved=2 * size)
    for name, options, passes in (
        ("norm", {"out": out}, 2),
        ("sum and norm", {"residual": residual, "total": like(x), "out": out}, 4),
        ("sum", {"residual": residual, "total": out}, 3),
    ):
        table.measure(
            name,
            shape,
            partial(kernels.sum_norm, x, bias, gain, **options),
            moved=passes * size,
        )


def ends(table: Table) -> None:
    channels, side = LEVELS[0]
    colours, pixels = 3, side * side
    x, residual = picture(channels, side), picture(channels, side)
    image = torch.rand((1, colours, side, side), device=DEVICE, dtype=torch.bfloat16)
    bias, gain, last_bias = vector(channels), vector(channels), vector(colours)
    stem = stem_weight(torch.randn((channels, colours, 3, 3), device=DEVICE, dtype=DTYPE) / 5)
    head = head_weight(torch.randn((colours, channels, 3, 3), device=DEVICE, dtype=DTYPE) / 30)
    size, edge, products = 2 * x.numel(), 2 * image.numel(), 2 * 9 * colours * pixels
    flops = 2 * pixels * channels * 9 * colours
    shape = f"{channels}x{side}x{side}"
    table.measure(
        "stem",
        shape,
        lambda: kernels.stem(image, stem, bias, gain),
        moved=2 * size + edge,
        flops=flops,
    )
    table.measure(
        "head",
        shape,
        lambda: kernels.head(
            x, bias, gain, head, last_bias, residual=residual, dtype=torch.bfloat16
        ),
        moved=2 * size + 2 * products + edge,
        flops=flops,
    )


def attention(table: Table) -> None:
    channels = LEVELS[-1][0]
    for tokens in (LEVELS[-1][1] ** 2, 16384, 4032):
        qkv = torch.randn((tokens, 3 * channels), device=DEVICE, dtype=DTYPE)
        table.measure(
            "attention",
            f"{tokens}x{channels}",
            lambda qkv=qkv: kernels.attend(qkv),
            moved=2 * 4 * tokens * channels,
            flops=4 * tokens**2 * channels,
        )


def convolutions(table: Table) -> None:
    """cuDNN's, as the network calls them."""
    for channels, side in LEVELS:
        x = picture(channels, side)
        weight = (torch.randn((channels, channels, 3, 3), device=DEVICE, dtype=DTYPE) / 30).to(
            memory_format=torch.channels_last
        )
        flops, size = 2 * side * side * 9 * channels**2, 2 * x.numel()
        shape = f"{channels}x{side}x{side}"
        convolve = lambda x=x, w=weight: F.conv2d(x, w, padding=1)  # noqa: E731
        table.measure("convolution 3x3", shape, convolve, moved=2 * size, flops=flops)
        if side != LEVELS[-1][1]:
            halve = lambda x=x, w=weight: F.conv2d(x, w, stride=2, padding=2)  # noqa: E731
            table.measure("the same, stride 2", shape, halve, moved=size * 5 // 4, flops=flops // 4)
    for channels, out, side in ((384, 192, 166), (384, 192, 332), (192, 96, 664)):
        x = picture(channels, side)
        weight = (torch.randn((channels, out, 4, 4), device=DEVICE, dtype=DTYPE) / 30).to(
            memory_format=torch.channels_last
        )
        table.measure(
            "transposed convolution 4x4",
            f"{channels}->{out}x{side}x{side}",
            lambda x=x, w=weight: F.conv_transpose2d(x, w, stride=2, padding=1),
            moved=2 * side * side * (channels + 4 * out),
            flops=2 * side * side * 16 * channels * out,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("kernels"))
    out = parser.parse_args().out
    table = Table()
    for part in (norms, ends, attention, convolutions):
        part(table)
    out.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine_facts(DEVICE), "versions": version_facts(DEVICE)}
    result = facts | {
        "copy_tb_per_s": table.bytes_per_ms / 1e9,
        "product_tflop_per_s": table.flops_per_ms / 1e9,
        "rows": table.rows,
    }
    (out / "kernels.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (out / "kernels.md").write_text(table.markdown(), "utf-8")
    print(table.markdown())


if __name__ == "__main__":
    main()
