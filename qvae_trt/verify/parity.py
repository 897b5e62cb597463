"""The run: engines, sizes and inputs, one comparison after the other."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

import qvae_trt
from qvae_trt import backends, store
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ForeignEngineError,
    QvaeError,
    StaleEngineError,
)
from qvae_trt.model import load_model
from qvae_trt.profiles import build_command
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import show
from qvae_trt.verify.bounds import BOUNDS, Output
from qvae_trt.verify.comparison import (
    REFERENCE,
    YARDSTICK,
    FunctionRunner,
    compare,
    run,
)
from qvae_trt.verify.inputs import LATENTS, PICTURES, Array
from qvae_trt.verify.mending import rebuild
from qvae_trt.verify.reference import (
    DIFFUSERS_CPU_PIXELS,
    Dtype,
    Outputs,
    Reference,
    Source,
    split_outputs,
)
from qvae_trt.verify.report import ParityRow, Status, VerifyReport, explain
from qvae_trt.verify.targets import ends_of, sizes_of

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.backends import Backend
    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Resolution
    from qvae_trt.store import EngineFile, Sidecar


@dataclass(frozen=True, slots=True)
class VerifyEvent:
    """What is about to run: step `done` + 1 of `total`."""

    done: int
    total: int
    engine: str
    resolution: Resolution
    input: str


OnEvent = Callable[[VerifyEvent], None]


def verify(
    engine_dir: Path,
    *,
    model: str,
    resolutions: Sequence[Resolution] = (),
    backend: str = "auto",
    on_event: OnEvent | None = None,
) -> VerifyReport:
    """Compare every engine under a folder with PyTorch.

    Sizes: a static engine runs at its own. An engine with profiles runs at every profile's opt
    where kernels are chosen for each profile (TensorRT), at the smallest and largest opt where
    there is one graph for all (onnxruntime), and at one size that is no opt. Inputs: two on a GPU
    and up to 512x512 pixels, else one, the photograph or its latents. At the other ends of its
    ranges it must run and give numbers, which are not compared.

    Args:
        engine_dir: as in the contract, with `static/` and `profiles/`.
        model: what the engines were built from, as `load_model` takes it.
        resolutions: only these sizes; without any, the sizes above.
        backend: only engines of this backend; `auto` takes all.
        on_event: told before each comparison.

    Returns: a report with a row for each output compared, and one for each engine that was not
        run, with the reason. `report.ok` is False where a bound is broken or nothing could be run.

    Raises:
        EngineError: no engine under the folder. ModelError: no such model.
    """
    started = time.monotonic()
    wanted = None if backend == "auto" else backends.resolve(backend)
    targets = store.find_engines(engine_dir)
    if not targets:
        raise EngineError(
            f"{engine_dir}: no engines found",
            fix=build_command(
                "static", *resolutions, model=model, backend=backend, engine_dir=engine_dir
            ),
        )
    loaded = load_model(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parity = _Run(engine_dir, loaded, Reference(loaded, device=device), on_event)
    parity.plan(targets, resolutions=resolutions, wanted=wanted)
    parity.execute()
    parity.missing(resolutions)
    return VerifyReport(
        rows=tuple(parity.rows),
        facts=_facts(engine_dir, loaded, device, parity.versions),
        proof=parity.reference.proof,
        seconds=time.monotonic() - started,
        backend=backend,
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One engine with the sizes and inputs that it is to run."""

    target: EngineFile
    sidecar: Sidecar
    backend: Backend
    sizes: tuple[tuple[Resolution, int], ...]
    ends: tuple[tuple[Resolution, int], ...]

    def steps(self, *, every_input: bool) -> list[tuple[Resolution, int, str]]:
        names = PICTURES if self.target.part == "encoder" else LATENTS
        return [
            (size, profile, name)
            for size, profile in self.sizes
            for name in (names if every_input or size.pixels <= DIFFUSERS_CPU_PIXELS else names[:1])
        ]


class _Run:
    """One call of `verify`: what is to run, and the rows so far."""

    def __init__(
        self, engine_dir: Path, model: Model, reference: Reference, on_event: OnEvent | None
    ) -> None:
        self.engine_dir = engine_dir
        self.model = model
        self.reference = reference
        self.on_event = on_event
        self.rows: list[ParityRow] = []
        self.versions: dict[str, str] = {}
        self._jobs: list[_Job] = []
        self._held: set[Resolution] = set()
        self._done = 0
        self._responses: dict[Part, dict[Output, float]] = {}
        self._cache: dict[tuple[Part, Resolution, str, Dtype], tuple[Outputs, Source]] = {}

    def plan(
        self,
        targets: Sequence[EngineFile],
        *,
        resolutions: Sequence[Resolution],
        wanted: str | None,
    ) -> None:
        """Sort the engines into those that can run here and those that cannot, with the reason."""
        for target in targets:
            try:
                sidecar = store.read_sidecar(target.path)
            except ForeignEngineError as error:
                self._note(target, None, "not run", error.what)
                continue
            except QvaeError as error:
                self._note(target, None, "error", error.what, fix=self._rebuild(target, None))
                continue
            flavour = sidecar.key.flavour
            if wanted is not None and flavour != wanted:
                self._note(
                    target, sidecar, "not run", f"built by {show(flavour)}, asked for {wanted}"
                )
                continue
            profiles, every_profile = sidecar.key.profiles, flavour != "onnxruntime"
            sizes = sizes_of(
                profiles,
                static=target.mode == "static",
                asked=resolutions,
                every_profile=every_profile,
            )
            if not sizes:
                continue
            self._held |= {size for size, _ in sizes}
            try:
                backend = backends.for_engine(target.path, sidecar)
                backend.can_run().require()
                backend.supports(sidecar.key.precision).require()
            except BackendError as error:
                self._note(target, sidecar, "not run", error.what)
                continue
            self.versions[backend.name] = backend.version()
            ends = (
                [] if resolutions else ends_of(profiles, every_profile=every_profile, besides=sizes)
            )
            self._jobs.append(_Job(target, sidecar, backend, tuple(sizes), tuple(ends)))

    def missing(self, resolutions: Sequence[Resolution]) -> None:
        """A row for each size asked for that no engine holds."""
        for size in resolutions:
            if size not in self._held:
                self.rows.append(
                    ParityRow(
                        engine="–",
                        part=None,
                        mode=None,
                        status="error",
                        reason=f"no engine holds {size}",
                        resolution=size,
                    )
                )

    def execute(self) -> None:
        for job in self._jobs:
            try:
                engine = Engine.open(
                    job.target.path,
                    backend=job.backend,
                    expected=job.target.expected(
                        job.backend.identity(),
                        weights_sha256=self.model.weights_sha256,
                        vae=self.model.kind.name,
                    ),
                )
            except QvaeError as error:
                self._done += self._count(job)
                stale = isinstance(error, StaleEngineError)
                fix = None if stale else error.fix
                self._note(
                    job.target,
                    job.sidecar,
                    "error",
                    _one_line(error),
                    fix=fix or self._rebuild(job.target, job.sidecar),
                )
                continue
            self._doubt(job)
            try:
                for size, profile, name in self._steps(job):
                    self._step(job, engine, size, profile, name)
                for size, profile in job.ends:
                    self._try(job, engine, size, profile)
            finally:
                engine.close()

    def _steps(self, job: _Job) -> list[tuple[Resolution, int, str]]:
        return job.steps(every_input=self.reference.device.type != "cpu")

    def _count(self, job: _Job) -> int:
        return len(self._steps(job)) + len(job.ends)

    def _begin(self, target: EngineFile, size: Resolution, name: str) -> None:
        if self.on_event is not None:
            total = sum(self._count(job) for job in self._jobs)
            self.on_event(VerifyEvent(self._done, total, self._name(target), size, name))
        self._done += 1

    def _doubt(self, job: _Job) -> None:
        """A row for each output that PyTorch's own does not move with the input: an engine can only
        agree with it, whatever it does with its input.
        """
        part, bounds = job.target.part, BOUNDS[job.sidecar.key.precision]
        if part not in self._responses:
            self._responses[part] = self.reference.response(part)
        for output, change in self._responses[part].items():
            if change <= bounds[output].relative_l2:
                self._note(
                    job.target,
                    job.sidecar,
                    "broken",
                    f"{output}: the same for any input, in PyTorch as well",
                    fix=f"No build mends the weights of {self.model.source}: name other ones.",
                )

    def _try(self, job: _Job, engine: Engine, size: Resolution, profile: int) -> None:
        """An end of a range: the engine must run there."""
        part = job.target.part
        name = PICTURES[0] if part == "encoder" else LATENTS[1]
        self._begin(job.target, size, name)
        status: Status = "passed"
        reason, fix = "it runs at the end of a range, and was not compared there", None
        try:
            outputs = _run_engine(engine, part, self.reference.input(part, name, size), profile)
            if not all(np.isfinite(value).all() for value in outputs.values()):
                status, reason = "broken", "NaN or infinity at the end of a range"
        except DeviceMemoryError as error:
            status, reason = "not run", error.what
        except QvaeError as error:
            status, reason, fix = "error", error.what, error.fix
        if status in ("broken", "error"):
            fix = fix or self._rebuild(job.target, job.sidecar, force=True)
        self._note(
            job.target, job.sidecar, status, reason, size=size, profile=profile, name=name, fix=fix
        )

    def _step(self, job: _Job, engine: Engine, size: Resolution, profile: int, name: str) -> None:
        target, precision = job.target, job.sidecar.key.precision
        self._begin(target, size, name)
        index = profile if target.mode == "profiles" else None
        x = self.reference.input(target.part, name, size)
        runner = FunctionRunner(
            self._name(target),
            input_name=engine.input.name,
            channels=x.shape[1],
            infer=lambda given: _run_engine(engine, target.part, given, profile),
        )
        try:
            outputs = run(runner, x, input_name=engine.input.name)
        except QvaeError as error:
            self._note(
                target,
                job.sidecar,
                "error",
                error.what,
                size=size,
                profile=index,
                name=name,
                fix=error.fix or self._rebuild(target, job.sidecar, force=True),
            )
            return
        fp32, source = self._torch(target.part, size, name, x, "fp32")
        bf16, yardstick_source = self._torch(target.part, size, name, x, "bf16")
        for output, found in compare(fp32, bf16, outputs, BOUNDS[precision]).items():
            self.rows.append(
                ParityRow(
                    engine=self._name(target),
                    part=target.part,
                    mode=target.mode,
                    status="passed" if found.passed else "broken",
                    reason=explain(found.verdicts),
                    flavour=job.sidecar.key.flavour,
                    precision=precision,
                    resolution=size,
                    profile_index=index,
                    input=name,
                    output=output,
                    source=source,
                    yardstick_source=yardstick_source,
                    comparison=found,
                    fix=None if found.passed else self._rebuild(target, job.sidecar, force=True),
                )
            )

    def _torch(
        self, part: Part, size: Resolution, name: str, x: Array, dtype: Dtype
    ) -> tuple[Outputs, Source]:
        """PyTorch's outputs, through Polygraphy as well. The last few are kept."""
        key = (part, size, name, dtype)
        if key not in self._cache:
            source = self.reference.source(size, dtype)
            runner = FunctionRunner(
                REFERENCE if dtype == "fp32" else YARDSTICK,
                input_name="x",
                channels=x.shape[1],
                infer=lambda given: self.reference.run(part, given, dtype),
            )
            outputs = run(runner, x, input_name="x")
            if part == "encoder" and dtype == "fp32" and name == PICTURES[0]:
                self.reference.remember(size, outputs)
            while len(self._cache) >= _KEPT:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = (outputs, source)
        return self._cache[key]

    def _name(self, target: EngineFile) -> str:
        return target.path.relative_to(self.engine_dir).as_posix()

    def _rebuild(self, target: EngineFile, sidecar: Sidecar | None, *, force: bool = False) -> str:
        return rebuild(target, sidecar, engine_dir=self.engine_dir, model=self.model, force=force)

    def _note(
        self,
        target: EngineFile,
        sidecar: Sidecar | None,
        status: Status,
        reason: str,
        *,
        size: Resolution | None = None,
        profile: int | None = None,
        name: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.rows.append(
            ParityRow(
                engine=self._name(target),
                part=target.part,
                mode=target.mode,
                status=status,
                reason=reason,
                flavour=None if sidecar is None else sidecar.key.flavour,
                precision=None if sidecar is None else sidecar.key.precision,
                resolution=size or target.resolution,
                profile_index=profile,
                input=name,
                fix=fix,
            )
        )


#: PyTorch results kept at once: both dtypes of both inputs of one part and size.
_KEPT = 4


def _run_engine(engine: Engine, part: Part, x: Array, profile: int) -> Outputs:
    tensor = torch.from_numpy(x).to(engine.device)
    with torch.inference_mode():
        y = engine.run(tensor, profile=profile)
    return split_outputs(part, y.float().cpu().numpy())


def _one_line(error: QvaeError) -> str:
    """What an error says, as one line: a colon already joins, a semicolon joins the others."""
    joined = "; ".join(line.strip() for line in error.what.splitlines())
    return joined.replace(":; ", ": ")


def _facts(
    engine_dir: Path, model: Model, device: torch.device, versions: dict[str, str]
) -> dict[str, str]:
    names = ("torch", "diffusers", "polygraphy", "numpy")
    return {
        "engine folder": str(engine_dir),
        "model": model.source,
        "weights": model.weights_sha256,
        "reference device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "qvae": qvae_trt.__version__,
        **{name: importlib.metadata.version(name) for name in names},
        **versions,
    }
