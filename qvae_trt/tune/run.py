"""Tuning: variant after variant is built, compared and timed; the file says which one to build."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qvae_trt import backends, store
from qvae_trt.bench.results import Timing
from qvae_trt.bench.timing import Limits, clock_for, make_inputs, measure, peak_bytes
from qvae_trt.build import BuildSettings, JobResult, build, plan_static
from qvae_trt.build.children import build_child
from qvae_trt.errors import BenchError, QvaeError, UsageError, printable
from qvae_trt.export import recipe_sha256
from qvae_trt.files.writing import workplace
from qvae_trt.json_rows import write
from qvae_trt.model import Model, load_model
from qvae_trt.profiles import PARTS, Part, Precision, Resolution
from qvae_trt.progress import Event, OnEvent, Progress, ignore, stages
from qvae_trt.runtime.engine import Engine
from qvae_trt.tune import record
from qvae_trt.tune.record import Measurement, Parity, Subject, TunedVariant, TuneFile, TuneKey
from qvae_trt.tune.variants import Axis, Variant, curated, default_variant, has_levels
from qvae_trt.verify.bounds import BOUNDS, compare
from qvae_trt.verify.inputs import LATENTS, PICTURES, Array
from qvae_trt.verify.reference import Reference, split_outputs
from qvae_trt.verify.report import explain
from qvae_trt.workers import Child

#: A variant must be faster than the default by more than this: measurements that are minutes apart
#: differ by as much, and a change of variant makes every engine stale.
LEAST_GAIN = 0.01
LIMITS = Limits(budget_s=2.0, min_runs=5, max_runs=200)
_LOCK_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """What one run found: `rows` are the measurements of its size and model, new and old."""

    path: Path
    file: TuneFile
    rows: tuple[Measurement, ...]
    default: Variant
    parts: tuple[Part, ...]

    def chosen(self, part: Part) -> Measurement | None:
        """The row that `build` will follow; None if no variant kept the bounds."""
        measurement = self.file.chosen(part)
        return measurement if measurement in self.rows else None

    @property
    def ok(self) -> bool:
        return all(self.chosen(part) is not None for part in self.parts)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready: the file's choice and key, and the rows with their state."""
        whole = self.file.to_dict()
        return {
            "file": str(self.path),
            "key": whole["key"],
            "choice": whole["choice"],
            "default": str(self.default),
            "variants": [
                {
                    **write(row),
                    "variant": row.variant.against(self.default),
                    "chosen": row == self.chosen(row.subject.part),
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """What to measure, and how.

    Attributes:
        out: the tune file.
        model: as `load_model` takes it. A lowering is not tied to weights, but the comparison is
            made with these.
        variants: changes of the default, as `Variant.changed` reads them; without any, the axes of
            `curated`, each from the best so far.
        timing_cache: kept between runs; without one, between the variants of this run.
        force: measure again what the file holds.
        command: the command line, for the record.
    """

    resolution: Resolution
    out: Path
    model: str
    backend: str = "auto"
    precision: Precision = "fp16"
    parts: Sequence[Part] = PARTS
    variants: Sequence[str] = ()
    timing_cache: Path | None = None
    limits: Limits = LIMITS
    force: bool = False
    command: str = ""


def tune(settings: TuneSettings, *, on_event: OnEvent = ignore) -> TuneResult:
    """Measure variants at one size and write the fastest correct one into a file.

    Every variant is built as `build` builds it, into a temporary folder, run and timed in a process
    of its own, and compared with the folded fp32 network under `verify.BOUNDS`. The file is brought
    up to date after each; a variant that it holds already, of the same machine, backend, size,
    weights and graph, is not measured again. One that failed is.

    Raises:
        UsageError: no part, or a variant that cannot be.
        BackendError: the backend is absent, or cannot build or run engines here.
        BenchError: `out` is there and is no tune file.
        ModelError, StoreError.
        KeyboardInterrupt: passed on; what was measured is in the file.
    """
    return _Tuning(settings, on_event).run()


def fastest(measurements: Sequence[Measurement], default: Variant) -> Measurement | None:
    """The fastest correct one; the default, if nothing is faster by more than `LEAST_GAIN`."""
    correct = [(m.timing.median_ms, m) for m in measurements if m.status == "ok" and m.timing]
    if not correct:
        return None
    best_ms, best = min(correct, key=lambda pair: pair[0])
    tied = [m for ms, m in correct if m.variant == default and ms * (1.0 - LEAST_GAIN) <= best_ms]
    return tied[0] if tied else best


def measure_in_child(
    engine: Path, inputs: Sequence[Array], limits: Limits, *, progress: Progress
) -> tuple[Sequence[Array], Timing, int | None]:
    """`run_engine` in a process of its own, which ends with this call."""
    with Child("measuring", makes="result", fix="qvae doctor") as child:
        return child.call(run_engine, engine, inputs, limits, progress=progress)


def run_engine(
    path: Path, inputs: Sequence[Array], limits: Limits, *, progress: Progress
) -> tuple[list[Array], Timing, int | None]:
    """Run and time one engine, in a process of its own: an engine that fails on a GPU can take the
    whole CUDA context with it, and what one variant leaves in memory must not slow down the next.

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


def _count(axes: Sequence[Axis], default: Variant) -> int:
    """How many variants the axes add to the default; the default's own value of an axis is not
    counted.
    """
    tried = [default.changed(f"{name}={value}") for name, values in axes for value in values]
    return sum(variant != default for variant in tried)


class FoldedReference:
    """Inputs of one part at one size, with what the folded network makes of them in fp32: what a
    variant is compared with, under the bounds of `verify`. The fold itself is proved elsewhere.

    Attributes:
        inputs: by name: (1, C, 1, H, W) pictures in [-1, 1], or (1, z, 1, h, w) latents.
    """

    def __init__(self, model: Model, part: Part, resolution: Resolution) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        reference = Reference(model, device=device, folded=True)
        self.part = part
        names = PICTURES if part == "encoder" else LATENTS
        self.inputs = {name: reference.input(part, name, resolution) for name in names}
        self.fp32 = {name: reference.outputs(part, name, resolution, "fp32")[0] for name in names}
        self._bf16 = {name: reference.outputs(part, name, resolution, "bf16")[0] for name in names}
        del reference
        if device.type == "cuda":
            # The engines to come are measured, and want the memory.
            torch.cuda.empty_cache()

    def check(self, outputs: Sequence[Array], precision: Precision) -> tuple[Parity, str]:
        """Compare an engine's outputs of all inputs.

        Returns: the worst figures over all inputs and outputs, and the broken bounds in words,
        empty if all hold.
        """
        metrics, broken = [], []
        for name, array in zip(self.inputs, outputs, strict=True):
            engine, bounds = split_outputs(self.part, array), BOUNDS[precision]
            compared = compare(self.fp32[name], self._bf16[name], engine, bounds)
            for output, comparison in compared.items():
                metrics.append(comparison.metrics)
                if not comparison.passed:
                    broken.append(f"{output} of {name}: {explain(comparison.checks)}")
        parity = Parity(
            psnr_db=_worst(min, [found.psnr_db for found in metrics]),
            relative_l2=_worst(max, [found.relative_l2 for found in metrics]),
        )
        return parity, "; ".join(broken)


def _worst(pick: Any, values: list[float]) -> float | None:
    """The worst value; None if one is NaN or the worst is infinite."""
    worst = math.nan if any(map(math.isnan, values)) else float(pick(values))
    return worst if math.isfinite(worst) else None


class _Tuning:
    """One call of `tune`."""

    def __init__(self, settings: TuneSettings, on_event: OnEvent) -> None:
        settings.resolution.check()
        if not settings.parts:
            raise UsageError(f"no part to tune: expected one of {', '.join(PARTS)}")
        self.settings, self.on_event = settings, on_event
        self.backend, precision = backends.get(settings.backend), settings.precision
        self.backend.supports(precision).require()
        self.backend.can_build().require()
        self.backend.can_run().require()
        self.default = default_variant(self.backend.name, self.backend.version(), precision)
        asked = [self.default.changed(text) for text in settings.variants]
        if not has_levels(self.backend.name) and any(v.level is not None for v in asked):
            fix = "leave level= out of --variants"
            raise UsageError(f"{self.backend.name} has no builder levels", fix=fix)
        if settings.out.exists():
            record.load(settings.out)  # a file of something else is refused before minutes of work
        self.file = TuneFile(key=TuneKey.here(self.backend, precision), command=settings.command)
        self.model = load_model(settings.model)
        weights, recipe, size = self.model.weights_sha256, recipe_sha256(), settings.resolution
        self.subjects = [
            Subject(part=part, resolution=size, weights_sha256=weights, recipe_sha256=recipe)
            for part in dict.fromkeys(settings.parts)
        ]
        latents = self.model.kind.latents_of(size)
        self.axes = {
            s.part: () if asked else curated(self.backend.name, precision, s.part, latents)
            for s in self.subjects
        }
        self.flat = list(dict.fromkeys([self.default, *asked]))
        counts = (len(self.flat) + _count(axes, self.default) for axes in self.axes.values())
        self.done, self.total = 0, sum(counts)
        self.reference: FoldedReference | None = None

    def run(self) -> TuneResult:
        out = self.settings.out
        with (
            store.lock_engine(out, timeout_s=_LOCK_TIMEOUT_S),
            workplace() as self.folder,
            build_child() as self.child,
        ):
            self._take_over()
            for subject in self.subjects:
                self._part(subject)
        rows = tuple(m for m in self.file.measurements if m.subject in self.subjects)
        parts = tuple(self.axes)
        return TuneResult(path=out, file=self.file, rows=rows, default=self.default, parts=parts)

    def _take_over(self) -> None:
        """Keep what an earlier run measured on this machine, and write the file now, so that one
        that cannot be written is noticed at once.
        """
        out, recipe = self.settings.out, self.subjects[0].recipe_sha256
        earlier = record.load(out) if out.exists() else None
        if earlier is not None:
            other = earlier.key.differences(self.file.key)
            if other:
                words = f"{out} is replaced: {other}"
                self.on_event(Event(kind="warning", text=words))
            else:
                # Measurements of another graph say nothing about what this version builds.
                rows = [m for m in earlier.measurements if m.subject.recipe_sha256 == recipe]
                self.file = replace(self.file, measurements=tuple(rows), choices=earlier.choices)
                kept = {p: c for p, c in earlier.choices.items() if self.file.chosen(p) is not None}
                self.file = replace(self.file, choices=kept)
        record.save(self.file, out)

    def _part(self, subject: Subject) -> None:
        self.reference = None
        found = [self._one(subject, variant) for variant in self.flat]
        for name, values in self.axes[subject.part]:
            best = fastest(found, self.default)
            base = self.default if best is None else best.variant
            variants = [base.changed(f"{name}={value}") for value in values]
            found += [self._one(subject, variant) for variant in variants if variant != base]
        self._choose(subject, complete=True)

    def _one(self, subject: Subject, variant: Variant) -> Measurement:
        item = f"{subject.part} {variant.against(self.default)}"
        event = partial(Event, item=item, index=self.done, count=self.total)
        self.on_event(event(kind="start"))
        before = self.file.find(subject, variant)
        if before is not None and before.status != "failed" and not self.settings.force:
            measurement, text = before, f"{before.outcome} (measured before)"
        else:
            measurement = self._measure(subject, variant, event)
            text = measurement.outcome
            rest = tuple(m for m in self.file.measurements if m is not before)
            self.file = replace(self.file, measurements=(*rest, measurement))
        self._choose(subject, complete=False)
        self.done += 1
        self.on_event(event(kind="end", text=text))
        return measurement

    def _choose(self, subject: Subject, *, complete: bool) -> None:
        """Name the fastest variant of a part, and write the file."""
        # Those that an earlier run asked for by name count, too.
        found = [m for m in self.file.measurements if m.subject == subject]
        best = fastest(found, self.default)
        choices = {p: c for p, c in self.file.choices.items() if p != subject.part}
        if best is not None:
            default = next((m.timing for m in found if m.variant == self.default), None)
            choices[subject.part] = TunedVariant(
                subject=subject,
                variant=best.variant,
                default_ms=None if default is None else default.median_ms,
                complete=complete,
            )
        self.file = replace(self.file, choices=choices)
        record.save(self.file, self.settings.out)

    # --- one variant --------------------------------------------------------------------------

    def _measure(
        self, subject: Subject, variant: Variant, event: Callable[..., Event]
    ) -> Measurement:
        measurement = Measurement(
            subject=subject, variant=variant, model=printable(self.model.source), status="failed"
        )
        place = self.folder / "variant"
        progress = stages(self.on_event, event)
        try:
            if self.reference is None:
                progress("PyTorch fp32", 0, 0)
                size = self.settings.resolution
                self.reference = FoldedReference(self.model, subject.part, size)
            engine, built = self._build(measurement, place, progress)
            measurement = replace(
                measurement,
                build_seconds=None if built.seconds is None else round(built.seconds, 3),
                engine_bytes=built.engine_bytes,
            )
            inputs, limits = list(self.reference.inputs.values()), self.settings.limits
            outputs, timing, memory = measure_in_child(engine, inputs, limits, progress=progress)
            if not timing.min_ms > 0:
                raise BenchError(f"a run of {timing.min_ms} ms cannot be")
            parity, broken = self.reference.check(outputs, self.settings.precision)
            return replace(
                measurement,
                status="broken" if broken else "ok",
                reason=broken,
                timing=timing,
                parity=parity,
                memory_bytes=memory,
            )
        except QvaeError as error:
            return replace(measurement, reason=" ".join(error.what.split()) or "failed")
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _build(
        self, measurement: Measurement, place: Path, progress: Progress
    ) -> tuple[Path, JobResult]:
        part, variant = measurement.subject.part, measurement.variant

        def pass_on(event: Event) -> None:
            if event.kind == "progress":
                progress(event.text, event.done, event.total)

        # Most layers of two variants are the same. TensorRT-RTX takes no timings, and would warn.
        shared = self.folder / "timings" if self.backend.name == "tensorrt" else None
        jobs = plan_static(place, [self.settings.resolution], [part], self.backend.suffix)
        settings = BuildSettings(
            model=self.model.source,
            backend=self.backend.name,
            precision=self.settings.precision,
            timing_cache=self.settings.timing_cache or shared,
            variants={part: variant},
            command=self.settings.command,
        )
        (built,) = build(jobs, settings, on_event=pass_on, child=self.child)
        if built.error is not None:
            raise built.error
        return jobs[0].path, built
