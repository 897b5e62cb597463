"""What a server sees of the decoder: latents to a PIL image on the host, the first use of a size, a
change of size.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor

from qvae_trt.bench.paths import Prepared, Workbench
from qvae_trt.bench.results import REFERENCE, ServiceRow, Timing
from qvae_trt.bench.timing import EXPECTED, explain, host_clock, measure
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.image_processor import QvaeImageProcessor

STOCK = "stock"
QVAE = "qvae"
_SWITCHES = 5


def measure_service(
    bench: Workbench, paths: Sequence[str], resolution: Resolution
) -> list[ServiceRow]:
    """First use of a size and steady latents → PIL for every path; a path that cannot run gives a
    row with its reason.

    The latents come as the pipeline has them: on the device, in the model's dtype.
    """
    inputs = bench.make_inputs("decoder", resolution, count=bench.settings.limits.inputs)
    latents = [value.to(bench.dtype) for value in inputs]
    rows: list[ServiceRow] = []
    with ExitStack() as stack:
        stack.callback(bench.empty_caches)
        ready: list[Prepared] = []
        for path in paths:
            bench.empty_caches()
            row = ServiceRow(kind="first_use", path=path, resolution=resolution)
            try:
                with ExitStack() as opened:
                    prepared = bench.prepare(path, "decoder", resolution, opened)
                    # Loading and the first decode; post-processing has no first time of its own.
                    steps = {"first_run_ms": _decode(bench, prepared, latents[0])[1]}
                    stack.enter_context(opened.pop_all())
            except EXPECTED as error:
                rows.append(replace(row, notes=(explain(error),)))
                continue
            load_ms = prepared.detail.get("load_ms")
            if load_ms is not None:
                steps = {"load_ms": float(load_ms), **steps}
            rows.append(replace(row, timing=Timing.of([sum(steps.values())]), steps=steps))
            ready.append(prepared)
        rows += _steady(bench, ready, resolution, latents)
    return rows


def _decode(
    bench: Workbench, prepared: Prepared, latents: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The picture, and the milliseconds until it was there."""
    begin = time.perf_counter()
    pixels = prepared.call(latents.to(prepared.dtype))
    if bench.device == "cuda":
        torch.cuda.synchronize()
    return pixels, (time.perf_counter() - begin) * 1000.0


def _steady(
    bench: Workbench,
    ready: Sequence[Prepared],
    resolution: Resolution,
    latents: Sequence[torch.Tensor],
) -> list[ServiceRow]:
    # Diffusers' own post-processing, as the pipelines set it up, and qvae's.
    step = bench.model.kind.step
    tools: dict[str, Any] = {STOCK: VaeImageProcessor(vae_scale_factor=step)}
    tools[QVAE] = QvaeImageProcessor(vae_scale_factor=step)
    # Stock diffusers is what a server runs today: with the stock processor only.
    pairs = {
        f"{prepared.name} {processor}": (prepared, processor)
        for prepared in ready
        for processor in ((STOCK,) if prepared.name == REFERENCE else (STOCK, QVAE))
    }
    steps: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}

    def call(name: str, index: int) -> None:
        prepared, processor = pairs[name]
        pixels, decode_ms = _decode(bench, prepared, latents[index])
        begin = time.perf_counter()
        tools[processor].postprocess(pixels[:, :, 0], output_type="pil")
        steps[name].append((decode_ms, (time.perf_counter() - begin) * 1000.0))

    calls = {name: partial(call, name) for name in pairs}
    measured = measure(calls, clock=host_clock, limits=bench.settings.limits)
    rows = []
    for name, (prepared, processor) in pairs.items():
        row = ServiceRow(
            kind="latents_to_pil", path=prepared.name, resolution=resolution, processor=processor
        )
        found = measured[name]
        if isinstance(found, str):
            rows.append(replace(row, notes=(found,)))
            continue
        decode_ms, postprocess_ms = zip(*steps[name][-found.runs :], strict=True)
        medians = {"decode_ms": median(decode_ms), "postprocess_ms": median(postprocess_ms)}
        rows.append(replace(row, timing=found, steps=medians))
    return rows


def switch(bench: Workbench, path: str, previous: Resolution, resolution: Resolution) -> ServiceRow:
    """The first decode after a change of size against the second, engines loaded and both sizes
    seen before.
    """
    row = ServiceRow(kind="switch", path=path, resolution=resolution, previous=previous)
    if path == "compiled":
        return replace(row, notes=("a second size is compiled anew, which first use shows",))
    after, steady = [], []
    with ExitStack() as stack:
        stack.callback(bench.empty_caches)
        try:
            runs = []
            for size in (previous, resolution):
                prepared = bench.prepare(path, "decoder", size, stack)
                latents = bench.make_inputs("decoder", size, count=1)[0].to(prepared.dtype)
                runs.append(partial(_decode, bench, prepared, latents))
            first, second = runs
            cost_ms = first()[1] + second()[1]
            rounds = bench.settings.limits.rounds({path: cost_ms})
            for _ in range(min(_SWITCHES, rounds)):
                first()
                after.append(second()[1])
                steady.append(second()[1])
        except EXPECTED as error:
            return replace(row, notes=(explain(error),))
    steps = {"after_switch_ms": median(after), "steady_ms": median(steady)}
    return replace(row, timing=Timing.of(after), steps=steps)
