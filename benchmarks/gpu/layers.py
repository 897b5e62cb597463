"""Where an engine's time goes: milliseconds of every layer, and of groups of layers.

usage: python benchmarks/gpu/layers.py ENGINE [--profile N] [--out DIR]

Writes DIR/layers.json (every layer) and DIR/layers.md (groups). Needs the TensorRT that built the
engine, a GPU, and an engine with a detailed profile, as `qvae build` makes them. TensorRT times a
layer by waiting for it, so the sum is a few per cent above the latency of the whole.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import tensorrt as trt
import torch

RUNS = 10
WARM_UP = 3


class Profiler(trt.IProfiler):
    """Collects every report; one list of milliseconds a layer, in order of execution."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.times_ms: dict[str, list[float]] = {}

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        self.times_ms.setdefault(layer_name, []).append(ms)


def measure(path: Path, profile: int) -> list[dict[str, Any]]:
    """Every layer, at the profile's opt size: median milliseconds, kind, tactic, tensor formats."""
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    source, target = engine.get_tensor_name(0), engine.get_tensor_name(1)
    stream = torch.cuda.Stream()
    shape = tuple(engine.get_tensor_shape(source))
    if -1 in shape:
        shape = tuple(engine.get_tensor_profile_shape(source, profile)[1])
        context.set_optimization_profile_async(profile, stream.cuda_stream)
        context.set_input_shape(source, shape)
    x = torch.randn(shape, device="cuda").half()
    y = torch.empty(tuple(context.get_tensor_shape(target)), device="cuda", dtype=torch.float16)
    context.set_tensor_address(source, x.data_ptr())
    context.set_tensor_address(target, y.data_ptr())
    for _ in range(WARM_UP):
        context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    profiler = Profiler()
    context.profiler = profiler
    for _ in range(RUNS):
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
    told = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    # 8.6 leaves control characters inside its strings.
    layers_told = json.loads(told, strict=False)["Layers"]
    known = {layer["Name"]: layer for layer in layers_told if isinstance(layer, dict)}
    return [
        {
            "name": name,
            "ms": round(statistics.median(times), 4),
            "kind": known.get(name, {}).get("LayerType", ""),
            "tactic": known.get(name, {}).get("TacticName", ""),
            "inputs": [kind_of(item) for item in known.get(name, {}).get("Inputs", [])],
            "output_dims": [
                item.get("Dimensions") for item in known.get(name, {}).get("Outputs", [])
            ],
        }
        for name, times in profiler.times_ms.items()
    ]


def kind_of(tensor: dict[str, Any]) -> str | None:
    """Format and data type: one field up to TensorRT 10, two from 11 on."""
    joined: str | None = tensor.get("Format/Datatype")
    if joined is not None:
        return joined
    words = [tensor[name] for name in ("Format", "Datatype") if tensor.get(name)]
    return ", ".join(words) or None


def group_of(layer: dict[str, Any]) -> str:
    """The kind of work, told from TensorRT's own layer type and name."""
    kind, name = layer["kind"], layer["name"].lower()
    if "matmul" in kind.lower() or ("matmul" in name and "reshape" not in name):
        return "attention: products and projections"
    if "exp" in name or "reducemax" in name or kind == "Reduce" or "softmax" in kind.lower():
        return "attention: maximum and exponential"
    if "deconv" in kind.lower() or "conv_transpose" in name:
        return "upsampling: transposed convolution"
    if "reformat" in kind.lower() or "reformatting" in name or "copy" in name:
        return "reformats and copies"
    if "conv" in kind.lower():
        return "convolutions"
    if "pointwise" in kind.lower() or kind in {"ElementWise", "Scale", "Activation", "Unary"}:
        return "norms, SiLU and residual sums"
    return "the rest"


def write(layers: list[dict[str, Any]], engine: Path, out: Path) -> None:
    """layers.json and layers.md."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "layers.json").write_text(json.dumps(layers, indent=1) + "\n")
    groups: dict[str, list[float]] = {}
    for layer in layers:
        groups.setdefault(group_of(layer), []).append(layer["ms"])
    total = sum(layer["ms"] for layer in layers)
    lines = [
        f"# Layers of {engine.name}",
        "",
        "| group | layers | ms | share |",
        "| --- | --- | --- | --- |",
    ]
    for group, times in sorted(groups.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| {group} | {len(times)} | {sum(times):.2f} | {sum(times) / total:.0%} |")
    lines += [
        f"| all | {len(layers)} | {total:.2f} | |",
        "",
        "The longest layers:",
        "",
        "| ms | kind | layer |",
        "| --- | --- | --- |",
    ]
    for layer in sorted(layers, key=lambda item: -item["ms"])[:25]:
        lines.append(f"| {layer['ms']:.3f} | {layer['kind']} | `{layer['name'][:90]}` |")
    (out / "layers.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("engine", type=Path)
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="from 0")
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    write(measure(given.engine, given.profile), given.engine, given.out)


if __name__ == "__main__":
    main()
