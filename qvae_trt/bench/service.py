"""What a server sees of the decoder: latents to a PIL image on the host, the first use of a size, a
change of size.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from qvae_trt.bench.results import REFERENCE, ServiceRow, Timing
from qvae_trt.bench.timing import EXPECTED, HostClock, Limits, explain, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from qvae_trt.bench.paths import Prepared, Workbench
    from qvae_trt.profiles import Resolution

LATENTS_TO_PIL = "latents_to_pil"
FIRST_USE = "first_use"
SWITCH = "switch"
STOCK = "stock"
QVAE = "qvae"
_SWITCHES = 5


def processors(step: int) -> dict[str, Any]:
    """diffusers' own post-processing, as the pipelines set it up, and qvae's.

    step: of the sides of pictures.
    """
    from diffusers.image_processor import VaeImageProcessor

    from qvae_trt.runtime.image_processor import QvaeImageProcessor

    return {
        STOCK: VaeImageProcessor(vae_scale_factor=step),
        QVAE: QvaeImageProcessor(vae_scale_factor=step),
    }


def measure_service(
    bench: Workbench, paths: Sequence[str], resolution: Resolution, *, limits: Limits
) -> list[ServiceRow]:
    """First use of a size and steady latents → PIL for every path; a path that cannot run gives a
    row with its reason.

    The latents come as the pipeline has them: on the device, in the model's dtype.
    """
    made = processors(bench.model.kind.step)
    latents = [
        value.to(bench.dtype)
        for value in bench.make_inputs("decoder", resolution, count=limits.inputs)
    ]
    rows: list[ServiceRow] = []
    ready: list[Prepared] = []
    for path in paths:
        bench.empty_caches()
        try:
            row, prepared = _first_use(bench, path, resolution, latents[0])
        except EXPECTED as error:
            rows.append(
                ServiceRow(
                    kind=FIRST_USE, path=path, resolution=resolution, notes=(explain(error),)
                )
            )
            continue
        rows.append(row)
        ready.append(prepared)
    try:
        rows += _steady(bench, ready, resolution, latents, made, limits)
    finally:
        for prepared in ready:
            prepared.close()
        bench.empty_caches()
    return rows


def _first_use(
    bench: Workbench, path: str, resolution: Resolution, latents: torch.Tensor
) -> tuple[ServiceRow, Prepared]:
    """Loading and the first decode; post-processing has no first time of its own."""
    prepared = bench.prepare(path, "decoder", resolution)
    try:
        steps = {"first_run_ms": _decode(bench, prepared, latents)[1]}
    except BaseException:
        prepared.close()
        raise
    load_ms = prepared.detail.get("load_ms")
    if load_ms is not None:
        steps = {"load_ms": float(load_ms), **steps}
    row = ServiceRow(
        kind=FIRST_USE,
        path=path,
        resolution=resolution,
        timing=Timing.of([sum(steps.values())]),
        steps=steps,
    )
    return row, prepared


def _decode(
    bench: Workbench, prepared: Prepared, latents: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The picture, and the milliseconds until it was there."""
    begin = time.perf_counter()
    pixels = prepared.call(latents.to(prepared.dtype))
    _synchronise(bench.device)
    return pixels, (time.perf_counter() - begin) * 1000.0


def to_pil(
    bench: Workbench, prepared: Prepared, processor: Any, latents: torch.Tensor
) -> tuple[float, float]:
    """Decode and post-process one picture as a pipeline does; returns the milliseconds of both."""
    pixels, decode_ms = _decode(bench, prepared, latents)
    begin = time.perf_counter()
    pictures = processor.postprocess(pixels[:, :, 0], output_type="pil")
    postprocess_ms = (time.perf_counter() - begin) * 1000.0
    if len(pictures) != 1:
        raise RuntimeError(f"post-processing gave {len(pictures)} pictures, expected 1")
    return decode_ms, postprocess_ms


def _steady(
    bench: Workbench,
    ready: Sequence[Prepared],
    resolution: Resolution,
    latents: Sequence[torch.Tensor],
    made: dict[str, Any],
    limits: Limits,
) -> list[ServiceRow]:
    steps: dict[str, list[tuple[float, float]]] = {}
    calls: dict[str, Callable[[int], object]] = {}
    named: dict[str, tuple[str, str]] = {}
    for prepared in ready:
        # Stock diffusers is what a server runs today: with the stock processor only.
        for processor in (STOCK,) if prepared.name == REFERENCE else (STOCK, QVAE):
            name = f"{prepared.name} {processor}"
            named[name] = (prepared.name, processor)
            steps[name] = []

            def call(
                index: int,
                *,
                name: str = name,
                run: Prepared = prepared,
                tool: Any = made[processor],
            ) -> object:
                steps[name].append(to_pil(bench, run, tool, latents[index]))
                return None

            calls[name] = call
    samples = measure(calls, clock=HostClock(), limits=limits)
    rows = []
    for name, (path, processor) in named.items():
        found = samples[name]
        timing = found.timing(with_wall=False)
        counted = [] if timing is None else steps[name][-timing.runs :]
        rows.append(
            ServiceRow(
                kind=LATENTS_TO_PIL,
                path=path,
                resolution=resolution,
                processor=processor,
                timing=timing,
                steps={}
                if timing is None
                else {
                    "decode_ms": median(pair[0] for pair in counted),
                    "postprocess_ms": median(pair[1] for pair in counted),
                },
                notes=() if found.failure is None else (found.failure,),
            )
        )
    return rows


def switch(
    bench: Workbench, path: str, previous: Resolution, resolution: Resolution, *, limits: Limits
) -> ServiceRow:
    """The first decode after a change of size against the second, engines loaded and both sizes
    seen before.
    """
    row = ServiceRow(kind=SWITCH, path=path, resolution=resolution, previous=previous)
    opened: list[Prepared] = []
    try:
        if path == "compiled":
            return replace(row, notes=("a second size is compiled anew, which first use shows",))
        opened.append(bench.prepare(path, "decoder", previous))
        opened.append(bench.prepare(path, "decoder", resolution))
        inputs = [
            bench.make_inputs("decoder", size, count=1)[0].to(one.dtype)
            for size, one in zip((previous, resolution), opened, strict=True)
        ]
        cost_ms = sum(
            _decode(bench, one, value)[1] for one, value in zip(opened, inputs, strict=True)
        )
        after, steady = [], []
        for _ in range(min(_SWITCHES, limits.rounds({path: cost_ms}))):
            opened[0].call(inputs[0])
            _synchronise(bench.device)
            after.append(_decode(bench, opened[1], inputs[1])[1])
            steady.append(_decode(bench, opened[1], inputs[1])[1])
    except EXPECTED as error:
        return replace(row, notes=(explain(error),))
    finally:
        for one in opened:
            one.close()
        bench.empty_caches()
    return replace(
        row,
        timing=Timing.of(after),
        steps={"after_switch_ms": median(after), "steady_ms": median(steady)},
    )


def _synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
