"""Measuring: every path at every size, one part after the other."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from qvae_trt.bench import results
from qvae_trt.bench.floor import count_flops, matmul_rate, on_meta
from qvae_trt.bench.machine import gpu_id, machine_facts, nvidia_smi, version_facts
from qvae_trt.bench.paths import Prepared, Workbench
from qvae_trt.bench.service import measure_service, switch
from qvae_trt.bench.timing import EXPECTED, Call, Limits, clock_for, explain, measure
from qvae_trt.errors import BackendError, StoreError, UsageError, printable
from qvae_trt.model import load_model
from qvae_trt.profiles import PARTS, Part, Resolution
from qvae_trt.progress import Event, OnEvent, ignore
from qvae_trt.runtime.vae import machine_here
from qvae_trt.store import measured
from qvae_trt.tensors import DTYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """What to measure.

    Attributes:
        resolutions: sizes of the pictures, in the order of the table.
        model: what `--model` takes.
        engine_dir: where the engines are; None leaves the engine columns out.
        baselines: which PyTorch paths, "pytorch", "folded", "compiled" or "fused"; None takes all,
            but "compiled" on a CPU, where compiling takes minutes, only if it is named. Without
            "pytorch" there is no speed-up.
        backend: what `--backend` takes.
        service: measure latents → PIL, first use and switching of sizes too.
        cuda_graphs: replay engines, and nothing else, from CUDA graphs; these medians are not kept
            for `load_vae(prefer="fastest")`.
        device: "cuda" or "cpu"; None takes the GPU if there is one. PyTorch runs in bf16 on a GPU
            and in fp32 on a CPU, engines in their own precision.
        limits: how long to measure; the default is right for tables.
        command: what the user typed, for the record.

    Raises:
        UsageError: no size or no part; a baseline, part or device that is unknown; one given twice.
        ResolutionError: a size that no VAE takes.
    """

    resolutions: Sequence[Resolution]
    model: str
    engine_dir: Path | None = None
    baselines: Sequence[str] | None = None
    backend: str = "auto"
    parts: Sequence[Part] = PARTS
    service: bool = False
    cuda_graphs: bool = False
    device: str | None = None
    limits: Limits = field(default_factory=Limits)
    command: str = ""

    def __post_init__(self) -> None:
        for what, given, known in (
            ("size", self.resolutions, self.resolutions),
            ("part", self.parts, PARTS),
            ("baseline", self.baselines or (), results.BASELINES),
            ("device", (self.device or "cpu",), ("cpu", "cuda")),
        ):
            for name in given:
                if name not in known:
                    raise UsageError(
                        f"unknown {what} {name!r}: expected one of {', '.join(map(str, known))}"
                    )
            if len(set(given)) < len(given):
                raise UsageError(f"a {what} is given more than once: {', '.join(map(str, given))}")
        if self.service and self.cuda_graphs:
            what = "first uses and changes of size are not measured with CUDA graphs"
            raise UsageError(what, fix="leave out --service or --cuda-graphs")
        if not (self.resolutions and self.parts):
            raise UsageError("nothing to measure: expected at least one size and one part")
        for resolution in self.resolutions:
            resolution.check()


def bench(
    settings: BenchSettings, *, out: Path | None = None, on_event: OnEvent = ignore
) -> results.BenchResult:
    """Measure every path that can run here, at each size; what cannot run is an empty cell with its
    reason.

    Args:
        out: a folder; `latency.json` there is brought up to date after each size, so that a bench
            that is killed leaves what it had measured, with `complete` false. An earlier one gets
            another name.

    Raises:
        UsageError: neither a baseline nor an engine folder.
        BackendError: a GPU asked for where there is none.
        ModelError: the model cannot be loaded.
        StoreError: `out` cannot be written.
    """
    device = _device(settings.device)
    resolutions, parts = settings.resolutions, settings.parts
    paths = paths_of(settings)
    loaded = load_model(settings.model)
    work = Workbench(loaded, settings, device=device)
    # Measured before the facts of the machine, so that its clocks are those of a busy GPU.
    matmul = matmul_rate(device, work.dtype)
    run = results.Run(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=settings.command,
        device=device,
        model=printable(loaded.source),
        weights_sha256=loaded.weights_sha256,
        precision=work.precision,
        machine=machine_facts(device),
        versions=version_facts(device),
        matmul=matmul,
        settings={
            "backend": settings.backend,
            "batch": 1,
            "cuda_graphs": settings.cuda_graphs,
            **asdict(settings.limits),
            "dtype": DTYPES[work.precision],
            "cudnn_benchmark": bool(torch.backends.cudnn.benchmark),
        },
        complete=False,
        notes=_notes(device, settings),
    )
    result = results.BenchResult(runs=(run,))
    folded = on_meta(loaded.vae)

    def at_size(part: Part, size: Resolution) -> dict[str, Sequence[object]]:
        flops = count_flops(folded, part, loaded.shape(part, size))
        floor_ms = flops / float(matmul["tflops"] or 0.0) / 1e9
        floor = results.Floor(part=part, resolution=size, flops=flops, floor_ms=floor_ms)
        return {"cells": _measure(work, paths, part, size), "floors": [floor]}

    def in_service(previous: Resolution, size: Resolution) -> dict[str, Sequence[object]]:
        rows = measure_service(work, paths, size)
        if previous != size:
            rows += [switch(work, path, previous, size) for path in paths]
        return {"service": rows}

    tasks = [
        (f"{part} {size}", partial(at_size, part, size)) for part in parts for size in resolutions
    ]
    if settings.service:
        before = (resolutions[-1], *resolutions[:-1])
        tasks += [
            (f"service {size}", partial(in_service, previous, size))
            for previous, size in zip(before, resolutions, strict=True)
        ]

    def keep() -> None:
        if out is not None:
            results.save(result, out / "latency.json")

    kept = None if out is None else results.set_aside(out / "latency.json")
    if kept is not None:
        on_event(Event(kind="warning", text=f"an earlier result was there, and is now {kept}"))
    keep()
    with closing(work), torch.no_grad():
        for index, (name, task) in enumerate(tasks):
            on_event(Event(kind="start", text=name, index=index, count=len(tasks)))
            new = {field: (*getattr(result, field), *rows) for field, rows in task().items()}
            result = replace(result, **new)
            keep()
    machine = {**run.machine, **_end_clocks(device)}
    versions = {**run.versions, **work.versions()}
    ended = replace(run, complete=True, machine=machine, versions=versions)
    result = replace(result, runs=(ended,))
    keep()
    if settings.engine_dir is not None and not settings.cuda_graphs:
        _remember(result, work, settings.engine_dir)
    on_event(Event(kind="end", index=len(tasks) - 1, count=len(tasks)))
    return result


def _remember(result: results.BenchResult, work: Workbench, engine_dir: Path) -> None:
    """Keep beside the engines how fast they are against the fused path, which
    `load_vae(prefer="fastest")` reads. Nothing is kept where the folder cannot be written.
    """
    if not work.opened or work.device != "cuda":
        return
    medians: dict[Part, dict[Resolution, measured.Medians]] = {}
    for cell in result.cells:
        if cell.path in measured.WAYS and cell.timing is not None:
            sizes = medians.setdefault(cell.part, {}).setdefault(cell.resolution, {})
            sizes[cell.path] = cell.timing.median_ms
    with suppress(StoreError):
        measured.remember(engine_dir / measured.FILE_NAME, machine_here(work.opened), medians)


def _end_clocks(device: str) -> dict[str, results.Fact]:
    if device != "cuda":
        return {}
    ended = nvidia_smi(gpu_id())
    return {f"{n}_end": ended[n] for n in ("clock_sm_mhz", "temperature_c") if n in ended}


def paths_of(settings: BenchSettings) -> list[str]:
    """What a bench with these settings measures here, in order.

    Raises:
        UsageError: neither a baseline nor an engine folder.
        BackendError: a GPU asked for where there is none.
    """
    baselines, on_gpu = settings.baselines, _device(settings.device) == "cuda"
    if baselines is None:
        baselines = results.BASELINES if on_gpu else results.BASELINES_ON_CPU
    engines = results.ENGINES if settings.engine_dir is not None else ()
    found = [path for path in results.PATHS if path in baselines or path in engines]
    if not found:
        raise UsageError(
            "nothing to measure: no baseline and no engine folder",
            fix=f"--baseline {results.REFERENCE}, or --engine-dir DIR",
        )
    return found


def _device(asked: str | None) -> str:
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise BackendError(
            "a GPU was asked for, and PyTorch finds none here",
            fix="qvae doctor says what is missing",
        )
    return asked or ("cuda" if found else "cpu")


def _notes(device: str, settings: BenchSettings) -> tuple[str, ...]:
    asked, cpu = settings.baselines, device == "cpu"
    compiled = (
        "compiled was not measured: it takes minutes on a CPU; --baseline compiled asks for it"
    )
    alone = asked is not None and results.REFERENCE not in asked
    notes = (
        (cpu and asked is None, compiled),
        (cpu, "Measured on a CPU: these figures say nothing about any GPU."),
        (cpu, "Memory is left empty on a CPU: a process shows no clean peak of one call there."),
        (settings.engine_dir is None, "No engine folder was given: engines were not measured."),
        (alone, f"{results.REFERENCE} was not measured, so there is no speed-up."),
    )
    return tuple(text for said, text in notes if said)


def _measure(
    work: Workbench, paths: Sequence[str], part: Part, resolution: Resolution
) -> list[results.Cell]:
    """All paths of one part at one size, in turns."""
    work.empty_caches()
    limits = work.settings.limits
    inputs = work.make_inputs(part, resolution, count=limits.inputs)
    clock = clock_for(work.device)
    calls: dict[str, Call] = {}
    cells: dict[str, results.Cell] = {}
    with ExitStack() as stack:
        for path in paths:
            cell = results.Cell(part=part, resolution=resolution, path=path)
            try:
                with ExitStack() as opened:
                    prepared = work.prepare(path, part, resolution, opened)
                    values = [value.to(prepared.dtype) for value in inputs]
                    call = _turn(prepared, values)
                    # Compilation, kernel loading, allocation: what the first call of a size costs.
                    device_ms, wall_ms = clock(partial(call, 0))
                    peak_bytes = work.peak_bytes(prepared, values[0])
                    stack.enter_context(opened.pop_all())
            except EXPECTED as error:
                cells[path] = replace(cell, notes=(explain(error),))
                work.empty_caches()
                continue
            calls[path] = call
            replayed = prepared.detail.get("cuda_graph")
            cells[path] = replace(
                cell,
                notes=("replayed from a CUDA graph",) if replayed else (),
                peak_bytes=peak_bytes,
                weights_bytes=prepared.weights_bytes,
                detail={**prepared.detail, "first_ms": wall_ms or device_ms},
            )
        measured_paths = measure(calls, clock=clock, limits=limits)
    for path, found in measured_paths.items():
        if isinstance(found, str):
            cells[path] = replace(cells[path], peak_bytes=None, notes=(found,))
        else:
            cells[path] = replace(cells[path], timing=found)
    return list(cells.values())


def _turn(prepared: Prepared, values: Sequence[torch.Tensor]) -> Call:
    return lambda index: prepared.call(values[index])
