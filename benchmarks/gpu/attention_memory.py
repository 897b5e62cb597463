"""What attention in a graph with ranges costs, by the operations that it is written with.

usage: python benchmarks/gpu/attention_memory.py [--forms FORM ...] [--backend tensorrt] [--out DIR]

TensorRT 8.6 may give attention to its compiler (a layer named ForeignNode), which plans memory by
itself. The forms differ in the operations that may be why. Each is the encoder's attention, of 384
channels with random weights, and exact. It stands between two convolutions that change nothing, as
in the network: behind a Gather or before an Unsqueeze the compiler takes it, and fails.

  static           the package's graph of the one size 1632x1088
  package          the package's form with ranges: values less the mean of a sample of them, 7
                   runs (engines with ranges have 8), each after all results of the one
                   before; queries and keys are filled up, and the filled ones cut out of tensors
                   that are longer by a constant
  package-10, package-14
                   the same with as many runs
  keys-as-they-are the same with 7 runs and no keys filled up
  seven, fourteen, twenty-eight
                   likewise, but the queries are filled up with as many as are missing: a number
                   that TensorRT takes for much larger than it is
  one-zero         as seven, but each after one value of the one before
  unpadded         no centre, keys as many as there are
  no-centre        keys filled up to a multiple of 8, with zeros by a clamp
  half-centre      the same, and the values less their mean, summed in fp16
  half-centre-inter, unpadded-inter
                   every k-th query is one run: no slice cuts tokens into runs
  select           as seven, but every k-th query is one run, taken by a product with zeros and
                   ones: no slice of queries
  whole            as package, but all queries in one run
  scan             a centre summed in float32, zeros by Expand, and a loop of the network as runs
  barrier          the same centre and zeros; the zero that is made of one run for the next goes
                   through a convolution, an operation that the compiler leaves to TensorRT
  half-centre-barrier, half-centre-inter-barrier
                   both

Each is built, inspected and timed in a process of its own, stopped after --limit seconds, so that
one that fails ends no other. Several GPUs share the work by --forms and CUDA_VISIBLE_DEVICES.

Writes DIR/FORM.json of each, and DIR/attention_memory.md over all that are in DIR. Where engines
cannot run (TensorRT-RTX without a GPU) they are only built.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt import backends
from qvae_trt.backends import BuildSpec
from qvae_trt.bench.timing import cuda_clock
from qvae_trt.export import onnx_of
from qvae_trt.folding import attention
from qvae_trt.folding.attention import Attention
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lowerings import PYTORCH, choose_lowering
from qvae_trt.model import load_model
from qvae_trt.opening import Wanted
from qvae_trt.profiles import Profile, Resolution
from qvae_trt.runtime.engine import Engine
from qvae_trt.tensors import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvae_trt.backends import Backend

#: Up to 48,128 tokens, the most of all profiles; 27,744 at opt.
PROFILE = Profile(*map(Resolution.parse, ("1088x608", "1632x1088", "2048x1504")))
#: The package's. Forms of the script have as many runs, or `times` as many.
LOWERING = choose_lowering("tensorrt", "8.6.1", "fp16")
RUNS, WARM_UP = 15, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How attention is written.

    Attributes:
        centre: where the mean of the values is summed, if it is taken off at all.
        zeros: what makes the values of the keys that fill up; None fills up no keys.
        bounded: queries are filled up by a constant and cut, not by what is missing.
        runs: parts of a `stack`, every k-th query (`inter`, and by a product `select`), the
            `whole`, or turns of a `loop`.
        times: how often as many runs as in a graph of one size.
        behind: a run waits for `one` value of the run before, or for `all`.
        barrier: what orders the runs goes through a convolution.
    """

    centre: Literal["float32", "half", "sample"] | None = None
    zeros: Literal["expand", "clamp"] | None = None
    runs: Literal["stack", "inter", "select", "whole", "loop"] = "stack"
    times: int = 1
    behind: Literal["one", "all"] = "one"
    barrier: bool = False
    bounded: bool = False


#: A number is the package's own form with as many runs.
FORMS: dict[str, Form | int] = {
    "static": LOWERING.attention_chunks,
    "package": LOWERING.attention_chunks,
    "package-10": 10,
    "package-14": 14,
    "keys-as-they-are": Form(centre="sample", behind="all", bounded=True),
    "seven": Form(centre="sample", behind="all"),
    "fourteen": Form(centre="sample", behind="all", times=2),
    "twenty-eight": Form(centre="sample", behind="all", times=4),
    "one-zero": Form(centre="sample"),
    "half-centre": Form(centre="half", zeros="clamp"),
    "no-centre": Form(zeros="clamp"),
    "half-centre-inter": Form(centre="half", zeros="clamp", runs="inter"),
    "unpadded": Form(),
    "unpadded-inter": Form(runs="inter"),
    "select": Form(centre="sample", runs="select", behind="all"),
    "whole": Form(runs="whole"),
    "scan": Form(centre="float32", zeros="expand", runs="loop"),
    "barrier": Form(centre="float32", zeros="expand", barrier=True),
    "half-centre-barrier": Form(centre="half", zeros="clamp", barrier=True),
    "half-centre-inter-barrier": Form(centre="half", zeros="clamp", runs="inter", barrier=True),
}


class Candidate(nn.Module):
    """(1, C, 1, h, w) → the same: attention in a form, on the weights of `block`."""

    def __init__(self, block: nn.Module, form: Form | int) -> None:
        super().__init__()
        runs = form if isinstance(form, int) else LOWERING.attention_chunks
        self.attention = Attention(block, replace(LOWERING, attention_chunks=runs))
        self.form = None if isinstance(form, int) else form
        channels = self.attention.query.weight.shape[0]
        self.first, self.last = identity(channels), identity(channels)
        bias = self.attention.value.bias.detach()
        self.scale = float(bias[channels])  # of the column of ones beside the values
        self.register_buffer("real", (torch.arange(len(bias)) < channels).to(bias.dtype))
        self.register_buffer("one", torch.ones(1, 1, 1, 1))
        if self.form and self.form.runs == "select":
            every = torch.eye(LOWERING.attention_chunks * channels).split(channels, dim=1)
            for index, columns in enumerate(every):
                self.register_buffer(f"of_run_{index}", columns.clone())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.squeeze(2))
        return self.last(self.attend(x)).unsqueeze(2)

    def attend(self, x: Tensor) -> Tensor:
        if self.form is None:
            return self.attention(x)
        batch, channels, height, width = x.shape
        parts = self.attention
        tokens = parts.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        mixed = self.mix(parts.query(tokens), parts.key(tokens), parts.value(tokens))
        y = parts.proj(mixed).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + y

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `folding.attention.attend_by_exp`, in the form."""
        channels = query.shape[2]
        if self.form.centre is None:
            return self.in_runs(query, key, value)
        wide = value.float() if self.form.centre == "float32" else value
        wide = wide[:, :: attention._SAMPLE] if self.form.centre == "sample" else wide
        centre = wide.mean(dim=1, keepdim=True).to(value.dtype)
        mixed = self.in_runs(query, key, value - centre * self.real)
        return mixed + centre[..., :channels] / self.scale

    def in_runs(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        tokens, channels = query.shape[1:]
        if self.form.zeros:
            filling = filling_to(8, tokens)
            more = value[:, :filling]
            zeros = more.clamp(0, 0) if self.form.zeros == "clamp" else torch.zeros_like(more)
            key = torch.cat([key, key[:, :filling]], dim=1)
            value = torch.cat([value, zeros], dim=1)
        transposed = key.transpose(1, 2)

        def mix(run: Tensor) -> Tensor:
            scores = run @ transposed
            sums = torch.exp(scores - scores.amax(dim=-1, keepdim=True)) @ value
            return sums[..., :channels] / sums[..., channels : channels + 1]

        if self.form.runs == "whole":
            return mix(query)
        chunks = self.form.times * LOWERING.attention_chunks
        missing = filling_to(chunks, tokens)
        more = query[:, : chunks if self.form.bounded else missing]
        query = torch.cat([query, more], dim=1)
        if self.form.bounded:
            query = query.narrow(1, 0, tokens + missing)
        if self.form.runs in ("inter", "select"):
            rows = query.reshape(1, -1, chunks * channels)
            if self.form.runs == "inter":
                runs = [rows.narrow(2, index * channels, channels) for index in range(chunks)]
            else:
                runs = [rows @ self.get_buffer(f"of_run_{index}") for index in range(chunks)]
            joined = torch.cat(self.in_turn(runs, mix), dim=2).reshape(1, -1, channels)
        elif self.form.runs == "stack":
            stacked = query.reshape(chunks, -1, channels)
            runs = [stacked.narrow(0, index, 1) for index in range(chunks)]
            joined = torch.cat(self.in_turn(runs, mix), dim=1)
        else:  # all at once here; loop_over_runs makes a loop of what lies between the reshapes
            joined = mix(query.reshape(chunks, -1, channels)).reshape(1, -1, channels)
        return joined.narrow(1, 0, tokens)

    def in_turn(self, runs: list[Tensor], mix: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """`mix` of each, after the one before: a zero made of its result is in the next."""
        mixed = [mix(runs[0])]
        for run in runs[1:]:
            zero = mixed[-1].clamp(0, 0)
            if self.form.behind == "one":
                zero = zero.narrow(1, 0, 1).narrow(2, 0, 1)
            if self.form.barrier:
                zero = F.conv2d(zero[None], self.one)[0]
            mixed.append(mix(run + zero))
        return mixed


def identity(channels: int) -> nn.Conv2d:
    """A convolution that changes nothing."""
    convolution = nn.Conv2d(channels, channels, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.eye(channels)[:, :, None, None])
        convolution.bias.zero_()
    return convolution


def filling_to(whole: int, tokens: int) -> int:
    """How many more make a multiple: 1 to `whole`, since nothing may be empty."""
    return (tokens // whole + 1) * whole - tokens


def loop_over_runs(graph: onnx.GraphProto) -> None:
    """What attention does with its stack of runs becomes a Scan: all from the product with the
    transposed keys to the reshape that joins the results.
    """
    makers = {name: node.op_type for node in graph.node for name in node.output}
    body: list[onnx.NodeProto] = []
    inside: set[str] = set()
    for node in graph.node:
        of = [makers.get(name) for name in node.input]
        scores = node.op_type == "MatMul" and of == ["Reshape", "Transpose"]
        if scores or (inside.intersection(node.input) and node.op_type != "Reshape"):
            body.append(node)
            inside.update(node.output)
    stack, result = body[0].input[0], body[-1].output[0]
    first = graph.node[:].index(body[0])
    kept = [node for node in graph.node if node not in body]
    # A run comes as a matrix; inside it keeps the three dimensions that it was traced with.
    body[0].input[0], body[-1].output[0] = "run_3d", "mixed_3d"
    kind = graph.input[0].type.tensor_type.elem_type
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    nodes = [
        make("Identity", ["nothing_in"], ["nothing_out"], name="nothing"),
        make("Unsqueeze", ["run", "run_axis"], ["run_3d"], name="run_3d"),
        *body,
        make("Squeeze", ["mixed_3d", "run_axis"], ["mixed"], name="mixed"),
    ]
    one_run = onnx.helper.make_graph(
        nodes,
        "one_run",
        [value("nothing_in", kind, [1]), value("run", kind, None)],
        [value("nothing_out", kind, [1]), value("mixed", kind, None)],
    )
    # TensorRT's parser refuses a Scan that carries nothing from one turn to the next.
    inputs, outputs = ["nothing", stack], ["nothing_left", result]
    scan = make("Scan", inputs, outputs, name="runs", num_scan_inputs=1, body=one_run)
    graph.initializer.extend(
        [
            onnx.helper.make_tensor("nothing", kind, [1], [0.0]),
            onnx.helper.make_tensor("run_axis", onnx.TensorProto.INT64, [1], [0]),
        ]
    )
    del graph.node[:]
    graph.node.extend([*kept[:first], scan, *kept[first:]])


def graph_of(block: nn.Module, name: str, example: Tensor) -> onnx.ModelProto:
    """The ONNX of a form, in the dtype of an example."""
    network = Candidate(block, FORMS[name]).to(example.dtype).eval().requires_grad_(False)
    proto = onnx_of(network, example, "decoder", scale=None if name == "static" else 8)
    if name == "scan":
        loop_over_runs(proto.graph)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def encoder_attention(source: str) -> nn.Module:
    return load_model(source).vae.encoder.mid_block.attentions[0]


def measure(name: str, backend: Backend, out: Path) -> dict[str, Any]:
    block = encoder_attention("random:full")
    channels = block.norm.gamma.numel()
    sizes = Profile.fixed(PROFILE.opt) if name == "static" else PROFILE
    shapes = [
        (1, channels, 1, *QWEN_IMAGE.latents_of(size)) for size in (sizes.min, sizes.opt, sizes.max)
    ]
    proto = graph_of(block, name, torch.zeros(shapes[1], dtype=torch.float16))
    graph, engine = out / f"{name}.onnx", out / f"{name}.trt"
    graph.write_bytes(proto.SerializeToString())
    spec = BuildSpec(ranges=(ShapeRange(*shapes),), precision="fp16")
    started = time.perf_counter()
    backend.build(graph, engine, spec)
    seconds = time.perf_counter() - started
    report: dict[str, Any] = {
        "form": name,
        "flavour": f"{backend.name} {backend.version()}",
        "gpu": backend.identity()["gpu"],
        "tokens": [math.prod(shape[3:]) for shape in shapes],
        "operations": dict(sorted(Counter(node.op_type for node in proto.graph.node).items())),
        "build_seconds": round(seconds, 1),
    }
    if backend.can_run().ok:
        told = backend.open(engine).inspect()  # type: ignore[attr-defined]
        layers = [item if isinstance(item, str) else item["Name"] for item in told["layers"]]
        report["planned_bytes"] = told["scratch_bytes"]
        report["foreign"] = [layer for layer in layers if "ForeignNode" in layer]
        report["layers"] = layers
        report |= run(block, engine, backend, shapes[1], shapes[2])
    return report


def run(
    block: nn.Module,
    engine: Path,
    backend: Backend,
    opt: tuple[int, ...],
    largest: tuple[int, ...],
) -> dict[str, float]:
    """Milliseconds, and how far the results are from PyTorch's in float32."""
    loaded = Engine.open(engine, wanted=Wanted(backend=backend, allow_foreign=True))
    wanted = Attention(block, PYTORCH).float().cuda()
    told: dict[str, float] = {}
    for name, shape in {"opt": opt, "max": largest}.items():
        random = torch.Generator("cuda").manual_seed(0)
        x = torch.randn(shape, device="cuda", generator=random).half()
        taken = [cuda_clock(partial(loaded.run, x))[0] for _ in range(WARM_UP + RUNS)]
        y = loaded.run(x)
        with torch.no_grad():
            exact = wanted(x[:, :, 0].float())[:, :, None]
        told[f"{name}_ms"] = round(statistics.median(taken[WARM_UP:]), 3)
        told[f"{name}_relative_l2"] = float((y.float() - exact).norm() / exact.norm())
    return told


def table(out: Path) -> str:
    rows = [
        "| form | planned, GB | in the compiler | ms, opt and max | rel. L2, likewise | build, s |",
        "| --- | ---: | :---: | ---: | ---: | ---: |",
    ]
    for name in FORMS:
        file = out / f"{name}.json"
        if not file.exists():
            continue
        told = json.loads(file.read_text())
        if "failed" in told:
            why = told["failed"].strip().rpartition("\n")[2][-300:].replace("|", "/")
            rows.append(f"| {name} | {why} | | | | |")
        elif "opt_ms" not in told:
            rows.append(f"| {name} | – | – | – | – | {told['build_seconds']} |")
        else:
            foreign = "yes" if told["foreign"] else "no"
            milliseconds = f"{told['opt_ms']:.2f}, {told['max_ms']:.2f}"
            errors = f"{told['opt_relative_l2']:.1e}, {told['max_relative_l2']:.1e}"
            numbers = f"{milliseconds} | {errors} | {told['build_seconds']}"
            rows.append(f"| {name} | {told['planned_bytes'] / 1e9:.2f} | {foreign} | {numbers} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--forms", nargs="+", default=[*FORMS], choices=FORMS, metavar="FORM")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument("--out", type=Path, default=Path("out/attention"))
    parser.add_argument("--limit", type=float, default=300, help="seconds for each form")
    parser.add_argument("--here", action="store_true", help="in this process, for one form")
    given = parser.parse_args()
    backend = backends.get(given.backend)
    backend.can_build().require()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.here:
        (name,) = given.forms
        report = measure(name, backend, given.out)
        (given.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        return
    for name in given.forms:
        apart(name, given)
        (given.out / "attention_memory.md").write_text(table(given.out))
    print(table(given.out))


def apart(name: str, given: argparse.Namespace) -> None:
    """One form in a process of its own, whose end is told in its JSON file whatever it is."""
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--here", "--forms", name,
               "--backend", given.backend, "--out", str(given.out)]  # fmt: skip
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=given.limit, check=False
        )
        failed = f"exit {done.returncode}: {done.stderr[-4000:]}" if done.returncode else None
    except subprocess.TimeoutExpired:
        failed = f"stopped after {given.limit:g} s"
    if failed:
        report = {"form": name, "failed": failed, "seconds": round(time.perf_counter() - begun, 1)}
        (given.out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    for left in (".onnx", ".trt"):
        (given.out / f"{name}{left}").unlink(missing_ok=True)
    print(name, failed or "done", flush=True)


if __name__ == "__main__":
    main()
