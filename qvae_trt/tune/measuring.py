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

from qvae_trt.bench.timing import Limits, clock_for, measure
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
    with closing(Engine.open(Path(request["engine"]), Purpose.BENCH)) as engine:
        inputs = np.load(request["inputs"], allow_pickle=False)
        progress("run", 0, 2)
        memory = None
        outputs = []
        for array in inputs:
            tensor = torch.from_numpy(array).to(engine.device)
            before = _allocated(engine.device)
            with torch.inference_mode():
                y = engine.run(tensor)
            outputs.append(y.float().cpu().numpy())
            if memory is None and before is not None:
                memory = torch.cuda.max_memory_allocated(engine.device) - before
        np.save(request["outputs"], np.stack(outputs))
        progress("time", 1, 2)
        with torch.inference_mode():
            timing = _time(engine, inputs[0].shape, limits)
    return {"timing": timing, "memory_bytes": memory}


def _time(engine: Engine, shape: tuple[int, ...], limits: Limits) -> dict[str, object]:
    # Noise: a GPU draws the most power, and so clocks lowest, on data without pattern.
    generator = torch.Generator().manual_seed(20240)
    dtype = getattr(torch, engine.input.dtype)
    values = [
        (torch.rand(shape, generator=generator) * 2 - 1).to(engine.device, dtype)
        for _ in range(limits.inputs)
    ]
    clock = clock_for(engine.device.type)
    calls = {"engine": lambda index: engine.run(values[index])}
    found = measure(calls, clock=clock, limits=limits)["engine"]
    timing = found.timing
    if timing is None:
        raise BenchError(found.failure or "the engine could not be timed")
    return asdict(timing)


def _allocated(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)
