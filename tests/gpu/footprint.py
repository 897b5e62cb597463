"""What engines cost in memory, at their first use, and at a change of size.

    python tests/gpu/footprint.py --engine-dir engines --model random:full --out footprint.json

Writes JSON and prints a Markdown table. Device memory is the whole device's, as the driver counts
it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution, load_profiles, load_static_sizes
from qvae_trt.runtime.vae import TrtVae, load_vae


def used_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def pair(vae: TrtVae, size: Resolution) -> tuple[float, float]:
    """Encode and decode at a size; milliseconds of each, to the end of the run."""
    x = torch.zeros((1, vae.input_channels, 1, size.height, size.width), device="cuda").half()
    z = torch.zeros((1, vae.z_dim, 1, *size.latent), device="cuda").half()
    torch.cuda.synchronize()
    start = time.perf_counter()
    vae.encode(x)
    torch.cuda.synchronize()
    middle = time.perf_counter()
    vae.decode(z)
    torch.cuda.synchronize()
    return (middle - start) * 1e3, (time.perf_counter() - middle) * 1e3


def steady_ms(vae: TrtVae, size: Resolution) -> tuple[float, float]:
    runs = [pair(vae, size) for _ in range(5)]
    return statistics.median(r[0] for r in runs), statistics.median(r[1] for r in runs)


def beyond(run: tuple[float, float], steady: tuple[float, float]) -> tuple[float, float]:
    """What a pair took beyond a steady one, encode and decode."""
    return run[0] - steady[0], run[1] - steady[1]


def measure(vae: TrtVae, name: str, sizes: Sequence[Resolution]) -> dict[str, object]:
    """Memory with these sizes in use; first use and change of size, beyond the run itself."""
    vae.release_memory()
    before = used_bytes()
    first = {str(size): pair(vae, size) for size in sizes}
    memory = vae.memory()
    after = used_bytes()
    steady = {str(size): steady_ms(vae, size) for size in sizes}
    back = {}
    for size in sizes:
        pair(vae, sizes[0] if size != sizes[0] else sizes[-1])
        back[str(size)] = pair(vae, size)
    return {
        "case": name,
        "device_bytes": after - before,
        **memory,
        "first_use_ms": {key: beyond(first[key], steady[key]) for key in steady},
        "switch_ms": {key: beyond(back[key], steady[key]) for key in steady},
        "steady_ms": steady,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines"))
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = load_model(options.model)
    static = list(load_static_sizes().values())
    torch.zeros(1, device="cuda")
    rows = []
    for name, folder, sizes in (
        ("one static pair", "static", static[:1]),
        ("all static pairs", "static", static),
        ("nine profiles, 1024x1024", "profiles", [Resolution(1024, 1024)]),
        ("nine profiles, at every opt", "profiles", [p.opt for p in load_profiles()]),
    ):
        if not (options.engine_dir / folder).is_dir():
            print(f"{name}: no {folder} engines", file=sys.stderr)
            continue
        vae = load_vae(options.engine_dir, model=model, backend="tensorrt", fallback="raise")
        rows.append(measure(vae, name, sizes))
        vae.release_memory()
    print("| engines | device MiB | of that scratch | worst first use, ms | worst switch, ms |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        mib = [int(row[key]) >> 20 for key in ("device_bytes", "scratch_bytes")]
        worst = [max(max(v) for v in row[key].values()) for key in ("first_use_ms", "switch_ms")]
        print(f"| {row['case']} | {mib[0]} | {mib[1]} | {worst[0]:.1f} | {worst[1]:.2f} |")
    report = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
