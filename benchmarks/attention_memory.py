"""What attention in a graph with ranges costs, by how its runs are kept apart: planned memory,
seconds to build, milliseconds.

usage: python benchmarks/attention_memory.py [--forms FORM ...] [--backend tensorrt] [--out DIR]

The network is the middle of the encoder (two residual blocks of 384 channels with the attention
between them) with random weights. A form is `RUNS-CHUNKS`, values of the lowering's fields
attention_runs and attention_chunks; with `-compiled` behind it 8.6 gives the graph to its compiler
of dynamic shapes; `static-CHUNKS` is a graph of the one size 1632x1088. Each form is built in a
process of its own, stopped after --limit seconds, so that one that fails ends no other. Several
GPUs share the work by --forms and CUDA_VISIBLE_DEVICES.

Writes DIR/FORM.json, .layers.json and .log.gz of each form, and DIR/attention_memory.md over all
forms that are in DIR. Where engines cannot run (TensorRT-RTX without a GPU) nothing is timed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvae_trt import backends
from qvae_trt.backends import BuildSpec, ShapeRange, trt_build
from qvae_trt.export import TENSOR_NAMES, onnx_of
from qvae_trt.folding import fold
from qvae_trt.folding.attention import Attention
from qvae_trt.lowerings import PYTORCH, Lowering, choose_lowering
from qvae_trt.model import load_model
from qvae_trt.profiles import Profile, Resolution

FORMS = ("static-7", "clamp-7", "clamp-7-compiled", "indexed-7", "indexed-7-compiled", "clamp-32",
         "relu-7", "operands-7", "joined-7", "scan-7")  # fmt: skip
#: Of profiles/nine.toml: the one of 1632x1088, and that of one megapixel.
PROFILES = [
    Profile(*map(Resolution.parse, sizes))
    for sizes in (
        ("1280x720", "1632x1088", "1664x1664"),
        ("736x896", "1024x1024", "1344x1504"),
    )
]
CHANNELS = 384
PLANNED = re.compile(r"Total Activation Memory: (\d+)")
RUNS, WARM_UP = 15, 3


class Middle(nn.Module):
    """(1, 384, 1, h, w) → the same: the layers around the attention of an encoder."""

    def __init__(self, lowering: Lowering) -> None:
        super().__init__()
        layers = list(fold(load_model("random:full").vae, lowering=lowering).encoder.layers)
        (at,) = (i for i, layer in enumerate(layers) if isinstance(layer, Attention))
        self.layers = nn.Sequential(*layers[at - 1 : at + 2])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x[:, :, 0])[:, :, None]


def shape(size: Resolution) -> tuple[int, ...]:
    return (1, CHANNELS, 1, *size.latent)


def measure(form: str, backend_name: str, out: Path) -> dict[str, Any]:
    runs, chunks, *compiled = form.split("-")
    fixed = runs == "static"
    backend = backends.get(backend_name)
    backend.can_build().require()
    lowering = choose_lowering(backend.name, backend.version(), "fp16")
    lowering = replace(
        lowering, attention_chunks=int(chunks), attention_runs="clamp" if fixed else runs
    )
    if compiled:
        trt_build._PREVIEW_FEATURES["FASTER_DYNAMIC_SHAPES_0805"] = True
    sizes = [Profile.fixed(PROFILES[0].opt)] if fixed else PROFILES
    x = torch.randn(shape(sizes[0].opt), generator=torch.Generator().manual_seed(0)).half()
    network = Middle(lowering).half().eval().requires_grad_(False)
    proto = onnx_of(network, x, "decoder", dynamic=not fixed, loops=runs == "scan")
    graph, engine = out / f"{form}.onnx", out / f"{form}.trt"
    graph.write_bytes(proto.SerializeToString())
    spec = BuildSpec(
        input_name=TENSOR_NAMES["decoder"][0],
        ranges=tuple(ShapeRange(shape(p.min), shape(p.opt), shape(p.max)) for p in sizes),
        precision="fp16",
    )
    heard: list[str] = []
    sink = type(backend._log.sink)  # type: ignore[attr-defined]
    tell = sink.log

    def keep(this: Any, severity: Any, text: str) -> None:
        heard.append(text)
        tell(this, severity, text)

    sink.log = keep
    try:
        begun = time.perf_counter()
        backend.build(graph, engine, spec)
        seconds = time.perf_counter() - begun
    finally:
        with gzip.open(out / f"{form}.log.gz", "wt") as file:
            file.writelines(f"{line!r}\n" for line in heard)
    report: dict[str, Any] = {
        "form": form,
        "flavour": f"{backend.name} {backend.version()}",
        "gpu": backend.identity()["gpu"],
        "lowering": lowering.canonical(),
        "build_seconds": round(seconds, 1),
        "planned_bytes": [int(n) for n in PLANNED.findall("\n".join(heard))],
        "max": [str(p.max) for p in sizes],
    }
    if backend.can_run().ok:
        report |= run(backend, engine, sizes)
        told = backend.inspect(engine)  # type: ignore[attr-defined]
        report["scratch_bytes"] = told["scratch_bytes"]
        (out / f"{form}.layers.json").write_text(json.dumps(told["layers"], indent=1))
    return report


def run(backend: Any, engine: Path, sizes: list[Profile]) -> dict[str, Any]:
    """Milliseconds at each profile's opt, and how far the result is from PyTorch's in float32."""
    session = backend.open(engine)
    exact = Middle(PYTORCH).float().cuda().eval().requires_grad_(False)
    times, errors = [], []
    for index, profile in enumerate(sizes):
        x = torch.randn(shape(profile.opt), device="cuda").half()
        y = torch.empty_like(x)
        stream = torch.cuda.Stream()
        needed = session.select(tuple(x.shape), index, stream.cuda_stream)
        scratch = torch.empty(max(needed, 1), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        taken = []
        for _ in range(WARM_UP + RUNS):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record(stream)
            session.execute(
                input_ptr=x.data_ptr(), output_ptr=y.data_ptr(), scratch_ptr=scratch.data_ptr(),
                scratch_bytes=needed, stream=stream.cuda_stream,
            )  # fmt: skip
            ended.record(stream)
            stream.synchronize()
            taken.append(begun.elapsed_time(ended))
        times.append(round(statistics.median(taken[WARM_UP:]), 3))
        with torch.no_grad():
            wanted = exact(x.float())
        errors.append(float((y.float() - wanted).norm() / wanted.norm()))
        del scratch
    session.close()
    return {"opt_ms": times, "relative_l2": errors}


def table(out: Path) -> str:
    rows = ["| form | planned, GB by profile | scratch, GB | ms at opt | rel. L2 | build, s |"]
    rows.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for path in sorted(out.glob("*.json")):
        if path.name.endswith(".layers.json"):
            continue
        told = json.loads(path.read_text())
        if "failed" in told:
            rows.append(f"| {told['form']} | {told['failed'][-160:]!r} | | | | |")
            continue
        planned = ", ".join(f"{n / 1e9:.2f}" for n in told["planned_bytes"])
        scratch = f"{told['scratch_bytes'] / 1e9:.2f}" if "scratch_bytes" in told else "–"
        times = ", ".join(f"{ms:.2f}" for ms in told.get("opt_ms", [])) or "–"
        errors = ", ".join(f"{e:.1e}" for e in told.get("relative_l2", [])) or "–"
        cells = (told["form"], planned, scratch, times, errors, told["build_seconds"])
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", default=FORMS)
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--out", type=Path, default=Path("out/attention"))
    parser.add_argument("--limit", type=float, default=280, help="seconds for each form")
    parser.add_argument("--here", action="store_true", help="in this process, for one form")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for form in given.forms:
        file = given.out / f"{form}.json"
        if given.here:
            file.write_text(json.dumps(measure(form, given.backend, given.out), indent=1) + "\n")
            continue
        command = [sys.executable, __file__, "--here", "--forms", form,
                   "--backend", given.backend, "--out", str(given.out)]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=given.limit, check=False
            )
            failed = f"exit {done.returncode}: {done.stderr}" if done.returncode else None
        except subprocess.TimeoutExpired:
            failed = f"stopped after {given.limit:g} s"
        if failed:
            file.write_text(json.dumps({"form": form, "failed": failed[-4000:]}) + "\n")
        print(file.read_text(), flush=True)
        for left in (".onnx", ".trt"):
            (given.out / f"{form}{left}").unlink(missing_ok=True)
    if not given.here:
        (given.out / "attention_memory.md").write_text(table(given.out))
        print(table(given.out))


if __name__ == "__main__":
    main()
