"""What first uses of the fused path cost: of a process, of a size, after offload; and its replays.

    TRITON_CACHE_DIR=$(mktemp -d) python benchmarks/gpu/first_use.py --out first_use_cold.json
    python benchmarks/gpu/first_use.py --out first_use_warm.json

The first command has no compiled kernels, the second finds them in Triton's cache. All times are
milliseconds on the host, from an idle device to an idle device, with random:full.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from recording import record

import qvae_trt
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import load_model
from qvae_trt.profiles import PARTS, Resolution

if TYPE_CHECKING:
    from qvae_trt.profiles import Part

FIRST = Resolution(1024, 1024)
NEW = ("1328x1328", "1248x832", "1376x768", "328x264", "512x512", "1024x1536", "672x384")
SMALL = ("272x272", "512x512", "672x384")


def one_ms(vae: Any, part: Part, size: Resolution) -> float:
    if part == "encoder":
        x = torch.rand((1, 3, 1, size.height, size.width), device="cuda", dtype=torch.bfloat16)
    else:
        x = torch.randn(
            (1, 16, 1, *QWEN_IMAGE.latents_of(size)), device="cuda", dtype=torch.bfloat16
        )
    torch.cuda.synchronize()
    begun = time.perf_counter()
    (vae.encode if part == "encoder" else vae.decode)(x)
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3


def median_ms(vae: Any, part: Part, size: Resolution) -> float:
    return statistics.median(one_ms(vae, part, size) for _ in range(15))


def measure() -> dict[str, Any]:
    model = load_model("random:full")
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    vae = qvae_trt.load_vae(None, model=model, fallback="raise")
    found: dict[str, Any] = {f"first {part} {FIRST}": one_ms(vae, part, FIRST) for part in PARTS}
    for text in NEW:
        size = Resolution.parse(text)
        for part in PARTS:
            first = one_ms(vae, part, size)
            warm = min(one_ms(vae, part, size) for _ in range(3))
            row = {"first_ms": first, "warm_ms": warm, "cost_ms": first - warm}
            found[f"new size, {part} {size}"] = row
    replayed = qvae_trt.load_vae(None, model=model, fallback="raise", cuda_graphs=True)
    for text in SMALL:
        size = Resolution.parse(text)
        replayed.warm_up((size.height, size.width))
        for part in PARTS:
            row = {"eager_ms": median_ms(vae, part, size)}
            found[f"{part} {size}"] = row | {"graph_ms": median_ms(replayed, part, size)}
    vae.to("cpu")
    vae.to("cuda")
    found[f"after offload, decoder {FIRST}"] = one_ms(vae, "decoder", FIRST)
    return found


if __name__ == "__main__":
    record("milliseconds", measure, about=__doc__)
