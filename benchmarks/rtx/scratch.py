"""The scratch memory that TensorRT-RTX plans for every engine. Needs no GPU: it builds without one.

usage: python benchmarks/rtx/scratch.py [--model random:full] [--whole] [--out FILE]

Builds the static sizes and the nine profiles of both parts in fp16, as `qvae build` does, and reads
what the builder says of its plan. The plans themselves are dropped.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from qvae_trt import backends
from qvae_trt.backends import BuildSpec
from qvae_trt.build import Job, plan_profiles, plan_static
from qvae_trt.export import export_onnx
from qvae_trt.lowerings import choose_lowering
from qvae_trt.model import Model, load_model

_PLANNED = re.compile(r"Total Activation Memory: (\d+) bytes")


class Heard:
    """What TensorRT says, as long as this is open."""

    def __init__(self, backend: Any) -> None:
        self._sink = type(backend._log.sink)
        self._tell = self._sink.log
        self.texts: list[str] = []

    def __enter__(self) -> Heard:
        texts, tell = self.texts, self._tell

        def keep(this: Any, severity: Any, text: str) -> None:
            texts.append(text)
            tell(this, severity, text)

        self._sink.log = keep
        return self

    def __exit__(self, *_: object) -> None:
        self._sink.log = self._tell


def measure(model: Model, job: Job, folder: Path, *, whole: bool = False) -> dict[str, Any]:
    """One engine: the scratch of each of its profiles, and the size of its plan, in bytes."""
    backend = backends.get("tensorrt_rtx")
    library = ("tensorrt_rtx", backend.version())
    lowering = choose_lowering(*library, "fp16")
    if not whole:
        lowering = lowering.for_sizes(job.profiles, *library)
    graph, plan = folder / "graph.onnx", folder / "engine.trt"
    export_onnx(
        model,
        job.part,
        graph,
        resolution=job.resolution,
        lowering=lowering,
    )
    ranges = job.ranges(model)
    spec = BuildSpec(ranges=ranges, precision="fp16")
    started = time.perf_counter()
    with Heard(backend) as heard:
        backend.build(graph, plan, spec)
    seconds = time.perf_counter() - started
    found = [int(size) for size in _PLANNED.findall("\n".join(heard.texts))]
    if len(found) != len(ranges):
        raise SystemExit(f"{job.title}: TensorRT told {len(found)} plans of {len(ranges)}")
    return {
        "part": job.part,
        "mode": job.mode,
        "plan_bytes": plan.stat().st_size,
        "seconds": round(seconds, 1),
        "profiles": [
            {"min": str(p.min), "opt": str(p.opt), "max": str(p.max), "scratch_bytes": size}
            for p, size in zip(job.profiles, found, strict=True)
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("scratch.json"))
    parser.add_argument("--whole", action="store_true", help="leave large graphs whole")
    given = parser.parse_args()
    model = load_model(given.model)
    jobs = [
        *plan_profiles(Path(), model.kind.profiles),
        *plan_static(Path(), model.kind.static_sizes.values()),
    ]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            rows.append(measure(model, job, Path(folder), whole=given.whole))
            print(job.title, *(p["scratch_bytes"] for p in rows[-1]["profiles"]), flush=True)
    result = {
        "schema": "qvae/scratch",
        "version": 1,
        "flavour": f"tensorrt_rtx {backends.get('tensorrt_rtx').version()}",
        "model": given.model,
        "precision": "fp16",
        "engines": rows,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
