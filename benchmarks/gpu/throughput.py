"""Pictures a second with one process on each GPU, for one GPU up to all of them.

usage: python benchmarks/gpu/throughput.py [--resolution WxH] [--engine-dir DIR] --out FILE

Each process decodes random latents of random:full and turns them into a PIL image, as a service
does, one after the other. All begin when the last one is ready. Without --engine-dir the fused path
serves.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qvae_trt.bench.machine import machine_facts, version_facts
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.image_processor import QvaeImageProcessor
from qvae_trt.runtime.vae import load_vae

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Barrier

MODEL = "random:full"


@torch.no_grad()
def serve(
    device: str,
    size: Resolution,
    engines: Path | None,
    seconds: float,
    ready: Barrier,
    done: Queue[Any],
) -> None:
    torch.set_num_threads(4)
    model = load_model(MODEL)
    vae = load_vae(engines, model=model, device=device, fallback="raise")
    processor = QvaeImageProcessor(vae_scale_factor=QWEN_IMAGE.scale)
    latents = torch.randn(model.shape("decoder", size), device=device, dtype=torch.bfloat16)

    def picture() -> None:
        processor.postprocess(vae.decode(latents).sample[:, :, 0], output_type="pil")

    for _ in range(3):
        picture()
    ready.wait(timeout=300)
    begun = time.perf_counter()
    pictures = 0
    while time.perf_counter() - begun < seconds:
        picture()
        pictures += 1
    done.put((device, pictures / (time.perf_counter() - begun), vae.choice("decoder", size).engine))


def measure(count: int, given: argparse.Namespace) -> dict[str, Any]:
    context = torch.multiprocessing.get_context("spawn")
    ready, done = context.Barrier(count), context.Queue()
    size = Resolution.parse(given.resolution)
    workers = [
        context.Process(
            target=serve,
            args=(f"cuda:{index}", size, given.engine_dir, given.seconds, ready, done),
        )
        for index in range(count)
    ]
    for worker in workers:
        worker.start()
    rates = sorted(done.get(timeout=400) for _ in workers)
    for worker in workers:
        worker.join()
    return {
        "gpus": count,
        "served_by": sorted({engine for _, _, engine in rates}),
        "pictures_per_s": round(sum(rate for _, rate, _ in rates), 2),
        "of_each_gpu": [round(rate, 2) for _, rate, _ in rates],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resolution", default="1024x1024", metavar="WxH")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--engine-dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    most = torch.cuda.device_count()
    rows = [measure(count, given) for count in sorted({1, *range(2, most, 2), most})]
    for row in rows:
        row["times_one_gpu"] = round(row["pictures_per_s"] / rows[0]["pictures_per_s"], 2)
    found = {
        "model": MODEL,
        "resolution": given.resolution,
        "rows": rows,
        "machine": machine_facts("cuda"),
        "versions": version_facts("cuda"),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(given.out.read_text("utf-8"))


if __name__ == "__main__":
    main()
