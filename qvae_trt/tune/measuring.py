"""The body of a measuring process: one engine is loaded, run on the given inputs, and timed.

A process of its own, because an engine that fails on a GPU can take the whole CUDA context with it,
and because what one variant leaves in memory must not slow down the next.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qvae_trt.bench.timing import Limits, clock_for, make_inputs, measure, peak_bytes
from qvae_trt.errors import BenchError
from qvae_trt.opening import Purpose
from qvae_trt.runtime.engine import Engine

if TYPE_CHECKING:
    from qvae_trt.progress import Progress


def run_engine(request: dict[str, Any], progress: Progress) -> dict[str, object]:
    """Run and time one engine.

    Args:
        request: `engine`; `inputs`, a .npy file (n, 1, C, 1, H, W) of float32; `outputs`, the one
            to write; and `limits`, as `Limits` has them.

    Returns: `timing`, as `Timing` has it; `memory_bytes` of one run on a GPU, else None.

    Raises:
        QvaeError: the engine does not load or does not run.
    """
    limits = Limits(**request["limits"])
    opened = Engine.open(Path(request["engine"]), Purpose.BENCH)
    with closing(opened) as engine, torch.inference_mode():
        inputs = np.load(request["inputs"], allow_pickle=False)
        progress("run", 0, 2)
        tensors = [torch.from_numpy(array).to(engine.device) for array in inputs]
        memory = None
        if engine.device.type == "cuda":
            memory = peak_bytes(lambda: engine.run(tensors[0]))
        outputs = [engine.run(tensor).float().cpu().numpy() for tensor in tensors]
        np.save(request["outputs"], np.stack(outputs))
        progress("time", 1, 2)
        dtype = getattr(torch, engine.input.dtype)
        made = make_inputs(engine.part, inputs[0].shape, count=limits.inputs, seed=20240)
        values = [value.to(engine.device, dtype) for value in made]
        calls = {"engine": lambda index: engine.run(values[index])}
        clock = clock_for(engine.device.type)
        found = measure(calls, clock=clock, limits=limits)["engine"]
    timing = found.timing
    if timing is None:
        raise BenchError(found.failure or "the engine could not be timed")
    return {"timing": asdict(timing), "memory_bytes": memory}
