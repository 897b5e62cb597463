"""Building engines, job by job."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from qvae_trt import backends, store
from qvae_trt.backends import Backend, BuildOutcome, BuildSpec
from qvae_trt.build.children import Graphs, GraphSpec, build_child, build_there
from qvae_trt.build.jobs import Job, JobResult
from qvae_trt.errors import (
    BuildError,
    ForeignEngineError,
    QvaeError,
    StaleEngineError,
    UsageError,
    expected,
)
from qvae_trt.files.writing import staged, sweep
from qvae_trt.lowerings import Lowering, choose_lowering, default_level
from qvae_trt.progress import Event, OnEvent, Progress, ignore, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Precision
    from qvae_trt.tune.variants import Variant
    from qvae_trt.workers import Child


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """How engines are built.

    Attributes:
        model: as `load_model` takes it.
        backend: a name as `backends.get` takes it.
        level: TensorRT's builder optimization level, 0 to 5; an engine that was built with another
            one is stale. None: as `default_level` says, and any level is up to date.
        timing_cache: a file whose name is made specific to GPU, version and precision. None: only
            the process that builds keeps the timings, for its next engines.
        variants: of parts: in place of the lowering that `choose_lowering` names, and of the level
            where `level` is None.
        force: build engines that are up to date, too.
        dry_run: say what would be built and why; write nothing.
        command: the command line, for the sidecars.
    """

    model: str
    backend: str = "auto"
    precision: Precision = "fp16"
    level: int | None = None
    timing_cache: Path | None = None
    variants: Mapping[Part, Variant] = field(default_factory=dict)
    force: bool = False
    dry_run: bool = False
    command: str = ""


def build(
    jobs: Sequence[Job],
    settings: BuildSettings,
    *,
    on_event: OnEvent = ignore,
    child: Child | None = None,
) -> list[JobResult]:
    """Builds what is missing or stale, keeps what is up to date. TensorRT engines are built in
    another process, the next one too unless one fails.

    Args:
        jobs: from `plan_static` or `plan_profiles`, with the backend's suffix.
        on_event: told of every step, in the calling thread except for the progress of a build
            that is not in another process.
        child: that process, where several calls share it; then no graph is exported ahead.

    Returns: one result a job, in their order. Failed jobs carry their error.
    Raises:
        UsageError: a level past 5. BackendError: the backend is absent, or cannot build here, or
            lacks the precision.
        ModelError: the weights cannot be had.
        KeyboardInterrupt: passed on, with child processes ended and nothing half written.
    """
    if settings.level is not None and not 0 <= settings.level <= 5:
        raise UsageError(f"level {settings.level}: expected 0 to 5")
    backend = backends.get(settings.backend)
    backend.supports(settings.precision).require()
    if not settings.dry_run:
        backend.can_build().require()
    from qvae_trt.model import load_model

    model = load_model(settings.model)
    if not settings.dry_run:
        sweep()  # also where every engine is kept
    with ExitStack() as stack:
        # TensorRT-RTX builds in less time than another process takes to start.
        ahead = backend.name == "tensorrt" and child is None
        graphs = stack.enter_context(Graphs(model, ahead=ahead))
        if backend.name == "onnxruntime":
            child = None
        elif child is None:
            child = stack.enter_context(build_child())
        make = backend.build if child is None else partial(child.call, build_there, backend.name)
        run = _Build(jobs, settings, backend, model, on_event, make, graphs)
        return [run.result(job, index) for index, job in enumerate(jobs)]


@dataclass(frozen=True, slots=True)
class _Build:
    """One call of `build`."""

    jobs: Sequence[Job]
    settings: BuildSettings
    backend: Backend
    model: Model
    on_event: OnEvent
    make: Callable[..., BuildOutcome]
    graphs: Graphs

    def result(self, job: Job, index: int) -> JobResult:
        event = partial(Event, item=job.title, index=index, count=len(self.jobs))
        try:
            result = self._decide(job, event)
        except Exception as error:
            failure = expected(error)
            if failure is None:
                raise
            result = JobResult(job, "failed", failure.what, error=failure)
        for text in result.warnings:
            self.on_event(event(kind="warning", text=text))
        self.on_event(event(kind="end", text=result.outcome))
        return result

    def _decide(self, job: Job, event: Callable[..., Event]) -> JobResult:
        progress = stages(self.on_event, event)
        self._check_ranges(job)
        key = self._key(job)
        reason, sidecar = self._why_build(job, key)
        if reason is None and not self.settings.force:
            if not self.settings.dry_run:
                store.clean_up(job.path)
            return _kept(job, sidecar, "up to date")
        reason = reason or "up to date; built again because it was asked for"
        if self.settings.dry_run:
            took, size = (sidecar.build_seconds, sidecar.engine_bytes) if sidecar else (None, None)
            return JobResult(job, "planned", reason, took, size)
        waited: list[str] = []

        def on_wait(holder: str) -> None:
            waited.append(holder)
            progress(f"waiting for {holder}", 0, 0)

        with store.lock_engine(job.path, on_wait=on_wait):
            # Another build may have finished it since, with or without a wait for its lock.
            again, sidecar = self._why_build(job, key)
            if again is None and (waited or not self.settings.force):
                builder = waited[0] if waited else "another build"
                return _kept(job, sidecar, f"up to date: {builder} built it meanwhile")
            self.on_event(event(kind="start", text=f"building, {reason}"))
            return self._build(job, key, reason, progress)

    def _check_ranges(self, job: Job) -> None:
        """BuildError for a range whose smallest size the graph does not run at; UsageError for one
        that does not hold its opt; ResolutionError for a size that the VAE does not take.
        """
        job.ranges(self.model)
        fewest = 1 if job.mode == "static" else self._lowering(job).fewest_latents
        for index, profile in enumerate(job.profiles):
            if profile.fault is not None:  # TensorRT-RTX would build it
                raise UsageError(f"{job.title}: profile {index}: {profile.fault}")
            height, width = self.model.kind.latents_of(profile.min)
            latents = height * width
            if latents < fewest:
                side = self.model.kind.scale * math.ceil(math.sqrt(fewest))
                raise BuildError(
                    f"{job.title}: profile {index} begins at {profile.min}, which is {latents}"
                    f" latents, expected at least {fewest}: attention runs in parts",
                    fix=f"let its min be {side}x{side} or larger",
                )

    def _build(
        self, job: Job, key: Mapping[str, object], reason: str, progress: Progress
    ) -> JobResult:
        started = time.perf_counter()
        graph = self.graphs.graph(self._graph_spec(job), progress)
        with graph as exported, staged(job.path) as temporary:
            self._start_next(job)
            level = self._level(job.part)
            spec = BuildSpec(
                ranges=job.ranges(self.model),
                precision=self.settings.precision,
                level=default_level(job.profiles, *self._library()) if level is None else level,
                timing_cache=self.settings.timing_cache,
            )
            outcome = self.make(exported.path, temporary, spec, progress=progress)
            seconds = time.perf_counter() - started
            whole_key = store.EngineKey(**key, onnx_sha256=exported.sha256)  # type: ignore[arg-type]
            written = store.write_engine(
                job.path,
                store.Sidecar(
                    key=whole_key,
                    input=outcome.input,
                    output=outcome.output,
                    build_flags=outcome.flags,
                    command=self.settings.command,
                    build_seconds=round(seconds, 3),
                ),
                temporary,
            )
        return JobResult(
            job, "built", reason, seconds, written.engine_bytes, warnings=outcome.warnings
        )

    def _start_next(self, job: Job) -> None:
        """Have the graph of the next engine that is to be built exported meanwhile."""
        if not self.graphs.ahead:
            return
        for later in self.jobs[self.jobs.index(job) + 1 :]:
            try:
                wanted = (
                    self.settings.force or self._why_build(later, self._key(later))[0] is not None
                )
            except OSError:  # that engine's own failure, told when its turn comes
                continue
            if wanted:
                self.graphs.start(self._graph_spec(later))
                return

    def _graph_spec(self, job: Job) -> GraphSpec:
        return GraphSpec(job.part, job.resolution, self._lowering(job), self.settings.precision)

    # --- what is there and what it should be ----------------------------------------------------

    def _lowering(self, job: Job) -> Lowering:
        tuned, library = self.settings.variants.get(job.part), self._library()
        chosen = tuned.lowering if tuned else choose_lowering(*library, self.settings.precision)
        return chosen.for_sizes(job.profiles, *library)

    def _library(self) -> tuple[str, str]:
        return self.backend.name, self.backend.version()

    def _level(self, part: Part) -> int | None:
        level, tuned = self.settings.level, self.settings.variants.get(part)
        return tuned.level if level is None and tuned is not None else level

    def _key(self, job: Job) -> dict[str, object]:
        """The engine's key but for the hash of its ONNX, which takes an export to know."""
        from qvae_trt.export import recipe_sha256

        return {
            **self.backend.identity(),
            "vae": self.model.kind.name,
            "part": job.part,
            "mode": job.mode,
            "precision": self.settings.precision,
            "lowering": self._lowering(job).canonical(),
            "profiles": job.profiles,
            "weights_sha256": self.model.weights_sha256,
            "recipe_sha256": recipe_sha256(),
        }

    def _why_build(
        self, job: Job, key: Mapping[str, object]
    ) -> tuple[str | None, store.Sidecar | None]:
        """Why the engine must be built, or None; and the sidecar of what is there, if any."""
        try:
            sidecar = store.check_engine(job.path, expected=key)
        except QvaeError as error:
            if not job.path.exists() and not job.path.is_symlink():
                return "not built yet", None
            with suppress(QvaeError):  # of a malformed one, the error tells
                return _one_line(error), store.read_sidecar(job.path)
            return _one_line(error), None
        return sidecar.other_level(self._level(job.part)), sidecar


def _kept(job: Job, sidecar: store.Sidecar | None, reason: str) -> JobResult:
    return JobResult(job, "kept", reason, 0.0, None if sidecar is None else sidecar.engine_bytes)


def _one_line(error: QvaeError) -> str:
    if isinstance(error, ForeignEngineError):
        return "an engine without a sidecar: nothing says what it is"
    if isinstance(
        error, StaleEngineError
    ):  # one line a difference, below a line that names the file
        return "; ".join(line.strip() for line in error.what.splitlines()[1:]) or error.what
    return error.what
