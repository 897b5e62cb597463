"""The body of a measuring process: one engine is loaded, run on the given inputs, and timed.

A process of its own, because an engine that fails on a GPU can take the whole CUDA context with it,
and because what one variant leaves in memory must not slow down the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from qvae_trt.bench.results import Timing
from qvae_trt.bench.timing import Limits, clock_for, make_inputs, measure, peak_bytes
from qvae_trt.errors import BenchError
from qvae_trt.progress import Progress
from qvae_trt.runtime.engine import Engine
from qvae_trt.verify.inputs import Array


def run_engine(
    path: Path, inputs: Sequence[Array], limits: Limits, *, progress: Progress
) -> tuple[list[Array], Timing, int | None]:
    """Run and time one engine.

    Args:
        inputs: (1, C, 1, H, W) each, all of one shape.

    Returns: its outputs in float32, how long it takes, and the bytes that one run takes on a GPU,
        else None.

    Raises:
        QvaeError: the engine does not load or does not run.
    """
    with closing(Engine.open(path)) as engine, torch.inference_mode():
        progress("run", 0, 2)
        tensors = [torch.from_numpy(array).to(engine.device) for array in inputs]
        memory_bytes = None
        if engine.device.type == "cuda":
            memory_bytes = peak_bytes(lambda: engine.run(tensors[0]))
        outputs = [engine.run(tensor).float().cpu().numpy() for tensor in tensors]
        progress("time", 1, 2)
        dtype = getattr(torch, engine.input.dtype)
        made = make_inputs(engine.part, inputs[0].shape, count=limits.inputs, seed=20240)
        values = [value.to(engine.device, dtype) for value in made]
        calls = {"engine": lambda index: engine.run(values[index])}
        clock = clock_for(engine.device.type)
        timing = measure(calls, clock=clock, limits=limits)["engine"]
    if isinstance(timing, str):
        raise BenchError(timing)
    return outputs, timing, memory_bytes
