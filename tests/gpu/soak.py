"""Many calls over many sizes from several threads, with evictions: results and memory must stay.

    python tests/gpu/soak.py --engine-dir engines --model random:full --calls 2000 --out soak.json

Exit 1 where a result differs from the single-threaded one, or memory grows after the first round.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from qvae_trt.profiles import PARTS, Part, Resolution
from qvae_trt.runtime.vae import TrtVae, load_vae

#: The seven static sizes and five that the nine profiles serve.
SIZES = (
    "1664x928 928x1664 1328x1328 1472x1104 1104x1472 1584x1056 1056x1584"
    " 512x512 1024x1024 848x480 1280x720 720x1280"
).split()
#: What allocators and the driver may keep between rounds without it being growth.
DEVICE_SLACK_BYTES = 64 << 20
HOST_SLACK = 0.02


@dataclass(frozen=True, slots=True)
class Soak:
    """What a soak found. Memory is taken when everything has been released."""

    calls: int
    threads: int
    sizes: int
    seconds: float
    wrong: int
    device_bytes: tuple[int, int]
    host_bytes: tuple[int, int]

    @property
    def failures(self) -> list[str]:
        found = [f"{self.wrong} of {self.calls} results differ"] if self.wrong else []
        if self.device_bytes[1] > self.device_bytes[0] + DEVICE_SLACK_BYTES:
            found.append(f"device memory grew: {self.device_bytes}")
        if self.host_bytes[1] > self.host_bytes[0] * (1 + HOST_SLACK):
            found.append(f"host memory grew: {self.host_bytes}")
        return found


def soak(
    vae: TrtVae, sizes: Sequence[Resolution], *, calls: int, threads: int, seed: int = 0
) -> Soak:
    """Encode and decode at random sizes, each result compared with the single-threaded one."""
    inputs = {(part, size): _input(vae, part, size) for part in PARTS for size in sizes}
    expected = {key: _run(vae, key[0], x) for key, x in inputs.items()}
    torch.cuda.synchronize()
    wrong = [0]
    lock = threading.Lock()

    def work(count: int, number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(count):
                key = rng.choice(list(inputs))
                y = _run(vae, key[0], inputs[key])
                same = torch.equal(y, expected[key])
                with lock:
                    wrong[0] += not same

    def round_of(count: int) -> None:
        workers = [
            threading.Thread(target=work, args=(count // threads, i)) for i in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    started = time.perf_counter()
    first = max(threads, calls // 10)
    round_of(first)
    before = _memory(vae)
    round_of(calls - first)
    seconds = time.perf_counter() - started
    after = _memory(vae)
    return Soak(
        calls=calls,
        threads=threads,
        sizes=len(sizes),
        seconds=seconds,
        wrong=wrong[0],
        device_bytes=(before[0], after[0]),
        host_bytes=(before[1], after[1]),
    )


def _input(vae: TrtVae, part: Part, size: Resolution) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(size.height * 7 + size.width)
    if part == "encoder":
        shape = (1, vae.input_channels, 1, size.height, size.width)
        return torch.rand(shape, generator=generator, device="cuda").mul_(2).sub_(1).half()
    shape = (1, vae.z_dim, 1, *size.latent)
    return torch.randn(shape, generator=generator, device="cuda").half()


def _run(vae: TrtVae, part: Part, x: torch.Tensor) -> torch.Tensor:
    if part == "encoder":
        return vae.encode(x, return_dict=False)[0].parameters
    return vae.decode(x, return_dict=False)[0]


def _memory(vae: TrtVae) -> tuple[int, int]:
    """Bytes in use on the device and resident on the host, with all engines released."""
    torch.cuda.synchronize()
    vae.release_memory()
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return total - free, pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine-dir", default="engines")
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--size", action="append", help="WxH; without it, twelve")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--budget-mib", type=int, default=600, help="small enough for evictions")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    vae = load_vae(
        options.engine_dir,
        model=options.model,
        backend="tensorrt",
        fallback="raise",
        memory_budget_bytes=options.budget_mib << 20,
        cuda_graphs=options.cuda_graphs,
    )
    sizes = [Resolution.parse(text) for text in options.size or SIZES]
    found = soak(vae, sizes, calls=options.calls, threads=options.threads)
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "model": options.model,
        "cuda_graphs": options.cuda_graphs,
        "budget_mib": options.budget_mib,
        **asdict(found),
        "failures": found.failures,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
