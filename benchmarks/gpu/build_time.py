"""Where the seconds of building an engine go, by the times of TensorRT's own messages.

usage: python benchmarks/gpu/build_time.py decoder --resolution 1328x1328 --out DIR
       python benchmarks/gpu/build_time.py decoder --profiles profiles/nine.toml --out DIR

Writes DIR/build_time.json (seconds and tactics of each kind of kernel, seconds of each layer) and
DIR/messages.gz (every message with its second), also where the build fails or is stopped by
SIGTERM, as `timeout` sends it. The engine goes to DIR/engine.trt, without a sidecar: `qvae build`
makes those that serve.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from qvae_trt import backends
from qvae_trt.backends import BuildSpec
from qvae_trt.build import Job, plan_profiles, plan_static
from qvae_trt.errors import QvaeError
from qvae_trt.export import export_onnx
from qvae_trt.lowerings import choose_lowering, default_level
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution, load_profiles

LAYERS = 40
_RUNNER = re.compile(r"-+ Timing Runner: (.*) \((\w+)")
_TACTIC = re.compile(r"Tactic( Name)?:")


class Stopwatch:
    """Every message of TensorRT, with its second since the first."""

    def __init__(self, log: Any) -> None:
        self.messages: list[tuple[float, str]] = []
        sink = type(log.sink)
        tell = sink.log
        begun = time.perf_counter()

        def keep(this: Any, severity: Any, text: str) -> None:
            self.messages.append((time.perf_counter() - begun, text))
            tell(this, severity, text)

        sink.log = keep

    def summary(self) -> dict[str, Any]:
        """Seconds from each message to the next, by the kind of kernel and by the layer that were
        being timed then; before the first of these it is `start`.
        """
        kinds: Counter[str] = Counter()
        tactics: Counter[str] = Counter()
        layers: Counter[str] = Counter()
        kind = layer = "start"
        ends = [second for second, _ in self.messages[1:]]
        for (second, text), end in zip(self.messages, ends, strict=False):
            runner = _RUNNER.match(text)
            if runner:
                layer, kind = runner[1], runner[2]
            tactics[kind] += bool(_TACTIC.match(text))
            kinds[kind] += end - second
            layers[layer] += end - second
        return {
            "messages": len(self.messages),
            "seconds": {name: round(spent, 2) for name, spent in kinds.most_common()},
            "tactics": {name: tactics[name] for name in kinds if tactics[name]},
            "layers": {name: round(spent, 2) for name, spent in layers.most_common(LAYERS)},
        }


def plan(options: argparse.Namespace) -> Job:
    if options.profiles is None:
        (job,) = plan_static(options.out, [options.resolution], [options.part])
    else:
        (job,) = plan_profiles(options.out, load_profiles(options.profiles), [options.part])
    return job


def measure(options: argparse.Namespace) -> None:
    backend = backends.get(options.backend)
    backend.can_build().require()
    model, job = load_model(options.model), plan(options)
    library = (backend.name, backend.version())
    lowering = choose_lowering(*library, "fp16").for_sizes(job.profiles, *library)
    level = default_level(job.profiles, *library) if options.level is None else options.level
    begun = time.perf_counter()
    exported = export_onnx(
        model,
        job.part,
        options.out / f"{job.part}.onnx",
        precision="fp16",
        resolution=job.resolution,
        lowering=lowering,
    )
    report: dict[str, Any] = {
        "engine": job.title,
        "model": model.source,
        "identity": backend.identity(),
        "lowering": lowering.canonical(),
        "level": level,
        "export_seconds": round(time.perf_counter() - begun, 1),
    }
    spec = BuildSpec(
        ranges=job.ranges(model),
        precision="fp16",
        level=level,
    )
    watch = Stopwatch(backend._log)  # type: ignore[attr-defined]
    begun = time.perf_counter()

    def write(end: str) -> None:
        seconds = round(time.perf_counter() - begun, 1)
        text = json.dumps({**report, "end": end, "build_seconds": seconds, **watch.summary()})
        (options.out / "build_time.json").write_text(text + "\n")
        with gzip.open(options.out / "messages.gz", "wt") as file:
            file.writelines(f"{second:.3f} {said!r}\n" for second, said in watch.messages)
        print(text, flush=True)

    def stop(*_: object) -> NoReturn:
        # It comes inside one of TensorRT's messages, where no exception may pass.
        write("stopped")
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        backend.build(exported.path, options.out / "engine.trt", spec)
    except QvaeError as error:
        write(f"failed: {error.what}")
        raise
    write("built")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("encoder", "decoder"))
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--resolution", type=Resolution.parse, metavar="WxH")
    size.add_argument("--profiles", type=Path, metavar="FILE")
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--level", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measure(options)


if __name__ == "__main__":
    main()
