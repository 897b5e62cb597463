"""What engines cost in memory, at their first use, and at a change of size.

    python benchmarks/gpu/footprint.py --engine-dir engines --out footprint.json

Writes JSON and prints Markdown tables. Device memory is the whole device's, as the driver counts
it, so that nothing else may run there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from stages import STAGES, Clock, timed

from qvae_trt import store
from qvae_trt.errors import QvaeError
from qvae_trt.model import Model, load_model
from qvae_trt.profiles import Mode, Part, Resolution, engine_path, load_static_sizes
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.ladder import Settings
from qvae_trt.runtime.vae import TrtVae

if TYPE_CHECKING:
    from collections.abc import Sequence

Pair = tuple[float, float]
_RUNS = 5
_SWITCHES = 3


def used_bytes() -> int:
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return total - free


def vae_of(model: Model, engine_dir: Path, mode: Mode) -> TrtVae:
    """A VAE that has the engines of one mode only."""
    engines = Engines(
        {mode: engine_dir / mode}, backend="tensorrt", weights_sha256=model.weights_sha256
    )
    return TrtVae(model, engines, Settings(fallback="raise"))


def one(clock: Clock, vae: TrtVae, part: Part, size: Resolution) -> dict[str, float]:
    """One call, from an idle device to an idle device, in milliseconds by stage."""
    shape = (
        (1, vae.input_channels, 1, size.height, size.width)
        if part == "encoder"
        else (1, vae.z_dim, 1, *vae.kind.latents_of(size))
    )
    x = torch.zeros(shape, device="cuda", dtype=torch.float16)
    return clock.run(lambda: vae.encode(x) if part == "encoder" else vae.decode(x))


def pair(clock: Clock, vae: TrtVae, size: Resolution) -> tuple[dict[str, float], dict[str, float]]:
    return one(clock, vae, "encoder", size), one(clock, vae, "decoder", size)


def median_pair(clock: Clock, vae: TrtVae, size: Resolution, runs: int) -> Pair:
    found = [pair(clock, vae, size) for _ in range(runs)]
    first, second = (statistics.median(run[i]["total"] for run in found) for i in (0, 1))
    return first, second


def beyond(run: Pair, steady: Pair) -> Pair:
    """What a pair took beyond a steady one, encode and decode."""
    return round(run[0] - steady[0], 3), round(run[1] - steady[1], 3)


def measure(clock: Clock, vae: TrtVae, name: str, sizes: Sequence[Resolution]) -> dict[str, Any]:
    """Memory with these sizes in use; first use and change of size, beyond the run itself."""
    begun = time.perf_counter()
    vae.release_memory()
    before = used_bytes()
    first = {size: pair(clock, vae, size) for size in sizes}
    memory = vae.memory()
    after = used_bytes()
    steady = {size: median_pair(clock, vae, size, _RUNS) for size in sizes}
    back: dict[Resolution, Pair] = {}
    for size in sizes if len(sizes) > 1 else ():
        runs: list[tuple[dict[str, float], dict[str, float]]] = []
        for _ in range(_SWITCHES):
            pair(clock, vae, sizes[0] if size != sizes[0] else sizes[-1])
            runs.append(pair(clock, vae, size))
        encode, decode = (statistics.median(run[i]["total"] for run in runs) for i in (0, 1))
        back[size] = encode, decode
    vae.release_memory()
    totals = {size: (run[0]["total"], run[1]["total"]) for size, run in first.items()}
    return {
        "case": name,
        "device_bytes": after - before,
        "kept_after_release_bytes": used_bytes() - before,
        **memory,
        "first_use_ms": {str(s): beyond(totals[s], steady[s]) for s in sizes},
        "switch_ms": {str(s): beyond(back[s], steady[s]) for s in back},
        "steady_ms": {str(s): steady[s] for s in sizes},
        "first_total_ms": {str(s): totals[s] for s in sizes},
        "first_stages_ms": {str(s): first[s] for s in sizes},
        "seconds": round(time.perf_counter() - begun, 1),
    }


def cases(engine_dir: Path, model: Model) -> list[tuple[str, Mode, list[Resolution]]]:
    """What there are engines for: name, mode, sizes."""
    found: list[tuple[str, Mode, list[Resolution]]] = []
    vae = vae_of(model, engine_dir, "static")
    listed = list(load_static_sizes().values())
    asked = [
        side.key.profiles[0].opt
        for side in map(_sidecar, sorted((engine_dir / "static").glob("*/vae_decoder.trt")))
        if side is not None
    ]
    known = [size for size in dict.fromkeys([*listed, *asked]) if _both(vae, size, "static")]
    if known:
        found.append(("one static pair", "static", known[:1]))
    if len(known) > 1:
        name = "all static pairs" if set(listed) <= set(known) else f"{len(known)} static pairs"
        found.append((name, "static", known))
    vae = vae_of(model, engine_dir, "profiles")
    side = _sidecar(engine_path(engine_dir, "decoder", "profiles", ".trt"))
    opts = [] if side is None else [p.opt for p in side.key.profiles]
    opts = [size for size in opts if _both(vae, size, "profiles")]
    count = {9: "nine", 2: "two"}.get(len(opts), str(len(opts)))
    middle = Resolution(1024, 1024)
    if middle in opts:
        found.append((f"{count} profiles, {middle}", "profiles", [middle]))
    if opts:
        found.append((f"{count} profiles, at every opt", "profiles", opts))
    return found


def _sidecar(path: Path) -> store.Sidecar | None:
    try:
        return store.read_sidecar(path)
    except QvaeError:
        return None


def _both(vae: TrtVae, size: Resolution, mode: Mode) -> bool:
    return all(vae.choice(part, size).engine == mode for part in ("encoder", "decoder"))


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    print("\n| engines | device MiB | of that scratch | worst first use, ms | worst switch, ms |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        mib = [int(row[key]) >> 20 for key in ("device_bytes", "scratch_bytes")]
        first = max(max(pair) for pair in row["first_use_ms"].values())
        switches = [max(pair) for pair in row["switch_ms"].values()]
        switch = f"{max(switches):.2f}" if switches else ""
        print(f"| {row['case']} | {mib[0]} | {mib[1]} | {first:.1f} | {switch} |")
    print("\nFirst use by stage, host ms:\n")
    print(f"| case | part, size | {' | '.join(STAGES)} | total | steady |")
    print(f"| --- | --- |{' ---: |' * (len(STAGES) + 2)}")
    for row in rows:
        for size, both in row["first_stages_ms"].items():
            for index, part in enumerate(("encoder", "decoder")):
                spent = [f"{both[index][stage]:.1f}" for stage in (*STAGES, "total")]
                steady = row["steady_ms"][size][index]
                print(f"| {row['case']} | {part} {size} | {' | '.join(spent)} | {steady:.1f} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-dir", type=Path, default=Path("engines"))
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    begun = time.perf_counter()
    model = load_model(options.model)
    torch.zeros(1, device="cuda")
    trt = importlib.import_module("tensorrt")
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "tensorrt": trt.__version__,
        "model": options.model,
        "rows": [],
    }

    def keep() -> None:
        report["seconds"] = round(time.perf_counter() - begun, 1)
        if options.out is not None:
            options.out.write_text(json.dumps(report, indent=2) + "\n")

    with torch.no_grad():
        with timed(trt) as clock:
            for name, mode, sizes in cases(options.engine_dir, model):
                vae = vae_of(model, options.engine_dir, mode)
                report["rows"].append(measure(clock, vae, name, sizes))
                print(f"{time.perf_counter() - begun:6.1f} s  {name}", flush=True)
                keep()
        print_tables(report["rows"])
    keep()
    if not report["rows"]:
        print(f"{options.engine_dir}: no engine pair of {options.model}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
