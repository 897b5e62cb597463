"""What sums in fp16 cost attention as `attention=exp` writes it (CPU, 25 minutes on two cores).

usage: python benchmarks/fp16_sums.py [--out benchmarks/fp16_sums.json]

TensorRT 8.6 adds up the product with the values in fp16. Here that product is emulated: 16 terms
are summed in float32, their sum is added to the total, and the total is rounded to fp16. All else
is in float32. Each case is run with the values as they are and, as the package has it, less the
mean of a sample of them.

Writes the relative L2 of the error:

  tokens    of the encoder's attention block on random tokens, where gpu/attention_memory.py
            measured an engine
  pictures  of whole networks on the pictures of `qvae verify`, with the largest difference: of
            bundled:tiny, and of the decoder where an engine without the mean was past its bound
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch
from torch import Tensor

from qvae_trt.folding import attention, fold
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import load_model
from qvae_trt.profiles import PARTS, Part, Resolution
from qvae_trt.verify.inputs import PICTURES, picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOWERING = choose_lowering("tensorrt", "8.6.1", "fp16")
#: Height and width in latents: the largest of the nine profiles.
SIDES = (188, 256)
SIZES = ("1328x1328", "1664x1664")
TERMS, QUERIES = 16, 4096


def product(weights: Tensor, values: Tensor) -> Tensor:
    """weights (1, Q, N) @ values (1, N, C) in fp16, with fp16 totals."""
    total = torch.zeros(1, weights.shape[1], values.shape[2], dtype=torch.float16)
    pairs = zip(weights.half().split(TERMS, dim=2), values.half().split(TERMS, dim=1), strict=True)
    for some, of_them in pairs:
        total = (total.float() + some.float() @ of_them.float()).half()
    return total.float()


def attend(multiply: Callable[[Tensor, Tensor], Tensor], *, centred: bool) -> Callable[..., Tensor]:
    """`folding.attention.attend_by_exp` with another product, and its centre or none."""

    def attend_by_exp(query: Tensor, key: Tensor, value: Tensor, _chunks: int) -> Tensor:
        channels = query.shape[2]
        centre = torch.zeros_like(value[:, :1])
        if centred:
            sample = value[:, :: attention._SAMPLE, :channels]
            centre[..., :channels] = sample.mean(dim=1, keepdim=True)
        mixed = []
        for run in query.split(QUERIES, dim=1):
            scores = run @ key.transpose(1, 2)
            weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
            sums = multiply(weights, value - centre)
            mixed.append(sums[..., :channels] / sums[..., channels : channels + 1])
        return torch.cat(mixed, dim=1) + centre[..., :channels] / attention._VALUE_SCALE

    return attend_by_exp


EXACT = attend(torch.matmul, centred=False)
FORMS = {"plain": attend(product, centred=False), "centred": attend(product, centred=True)}


def run(form: Callable[..., Tensor], network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with patch.object(attention, "attend_by_exp", form):
        return network(x)


def errors(network: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, dict[str, float]]:
    """Of each form."""
    exact = run(EXACT, network, x)
    found = {}
    for name, form in FORMS.items():
        error = run(form, network, x) - exact
        found[name] = {
            "relative_l2": float(f"{error.norm() / exact.norm():.2e}"),
            "max_abs": float(f"{error.abs().max():.2e}"),
        }
    return found


def on_tokens(source: str) -> dict[str, object]:
    torch.manual_seed(0)
    block = load_model(source).vae.encoder.mid_block.attentions[0]
    x = torch.randn(1, block.norm.gamma.numel(), *SIDES)
    network = attention.Attention(block, LOWERING).float()
    return {"model": source, "keys": SIDES[0] * SIDES[1], **errors(network, x)}


def on_pictures(
    source: str, size: str, name: str, parts: Sequence[Part] = PARTS
) -> dict[str, object]:
    model = load_model(source)
    network = fold(model.vae, lowering=LOWERING)

    def mean(x: Tensor) -> Tensor:
        return network.encode(x)[:, : model.z_dim]

    x = torch.from_numpy(picture(name, Resolution.parse(size)))
    runs = {"encoder": (mean, x), "decoder": (network.decode, run(EXACT, mean, x))}
    return {
        "model": source,
        "size": size,
        "picture": name,
        **{part: errors(*runs[part]) for part in parts},
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/fp16_sums.json"))
    given = parser.parse_args()
    found = {
        "tokens": [on_tokens("bundled:tiny"), on_tokens("random:full")],
        "pictures": [
            *(on_pictures("bundled:tiny", size, name) for size in SIZES for name in PICTURES),
            on_pictures("random:full", "1472x1104", "photograph", ["decoder"]),
        ],
    }
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
