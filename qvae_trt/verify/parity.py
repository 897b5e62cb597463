"""The run: engines, sizes and inputs, one comparison after the other."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from qvae_trt import backends, store
from qvae_trt.commands import build_command
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ForeignEngineError,
    QvaeError,
    StaleEngineError,
)
from qvae_trt.model import load_model
from qvae_trt.opening import Purpose, Wanted
from qvae_trt.progress import Event, OnEvent, ignore
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import show
from qvae_trt.verify.bounds import BOUNDS, Output
from qvae_trt.verify.comparison import compare
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
from qvae_trt.verify.targets import ends_of, left_out, sizes_of
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qvae_trt.backends import Backend
    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Resolution
    from qvae_trt.store import EngineFile, Sidecar


def verify(
    engine_dir: Path,
    *,
    model: str,
    resolutions: Sequence[Resolution] = (),
    backend: str = "auto",
    on_event: OnEvent = ignore,
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
        run, with the reason. `report.ok` is False where an engine
        exceeds its tolerance or nothing could be run.

    Raises:
        EngineError: no engine under the folder. ModelError: no such model.
    """
    started = time.monotonic()
    wanted = None if backend == "auto" else backends.resolve(backend)
    targets = store.find_engines(engine_dir)
    if not targets:
        asked = {"model": model, "backend": backend, "engine_dir": engine_dir}
        fix = build_command("static", *resolutions, **asked)
        raise EngineError(f"{engine_dir}: no engines found", fix=fix)
    loaded = load_model(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parity = _Parity(engine_dir, loaded, Reference(loaded, device=device), on_event)
    for engine in targets:
        parity.plan(engine, resolutions, wanted)
    parity.execute()
    parity.missing(resolutions)
    return VerifyReport(
        rows=tuple(parity.rows),
        facts=_facts(engine_dir, loaded, device, parity.versions),
        proof=parity.reference.proof,
        seconds=time.monotonic() - started,
        backend=backend,
        notes=tuple(parity.notes),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """One engine with the sizes that it is to run, each with its profile.

    Attributes:
        row: makes a row of this engine.
        steps: with the input, which is compared; ends: of its ranges, where it must run.
    """

    target: EngineFile
    sidecar: Sidecar
    backend: Backend
    row: Callable[..., ParityRow]
    steps: list[tuple[Resolution, int, str]]
    ends: list[tuple[Resolution, int]]


@dataclass(slots=True)
class _Parity:
    """One call of `verify`: what is to run, and the rows so far."""

    engine_dir: Path
    model: Model
    reference: Reference
    on_event: OnEvent
    rows: list[ParityRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    _jobs: list[_Job] = field(default_factory=list)
    _sizes: set[Resolution] = field(default_factory=set)
    _done: int = 0
    _responses: dict[Part, dict[Output, float]] = field(default_factory=dict)
    _cache: dict[tuple[Part, Resolution, str, Dtype], tuple[Outputs, Source]] = field(
        default_factory=dict
    )

    def plan(
        self, target: EngineFile, resolutions: Sequence[Resolution], wanted: str | None
    ) -> None:
        """A job for an engine that can run here; for one that cannot, a row with the reason."""
        name = target.path.relative_to(self.engine_dir).as_posix()
        row = partial(ParityRow, engine=name, part=target.part, mode=target.mode)
        try:
            sidecar = store.read_sidecar(target.path)
            flavour, precision = sidecar.key.flavour, sidecar.key.precision
            row = partial(row, flavour=flavour, precision=precision)
            if wanted is not None and flavour != wanted:
                raise BackendError(f"built by {show(flavour)}, asked for {wanted}")
            profiles, every_profile = sidecar.key.profiles, flavour != "onnxruntime"
            static = target.mode == "static"
            sizes = sizes_of(
                profiles, static=static, asked=resolutions, every_profile=every_profile
            )
            if not sizes:
                return
            self._sizes |= {size for size, _ in sizes}
            if not resolutions and (left := left_out(profiles, sizes)):
                self.notes.append(f"{name}: {left}")
            backend = backends.for_engine(target.path, sidecar)
            backend.can_run().require()
            backend.supports(precision).require()
        except (ForeignEngineError, BackendError) as error:
            reason = error.what
            self.rows.append(row(resolution=target.resolution, status="not run", reason=reason))
            return
        except QvaeError as error:
            broken = row(resolution=target.resolution, status="error", reason=error.what)
            self.rows.append(replace(broken, fix=self._rebuild(target, None)))
            return
        self.versions[backend.name] = backend.version()
        names = PICTURES if target.part == "encoder" else LATENTS
        several = self.reference.device.type != "cpu"
        steps = [
            (size, profile, name)
            for size, profile in sizes
            for name in names[: 2 if several or size.pixels <= DIFFUSERS_CPU_PIXELS else 1]
        ]
        ends = ends_of(profiles, every_profile=every_profile, besides=sizes)
        self._jobs.append(_Job(target, sidecar, backend, row, steps, [] if resolutions else ends))

    def missing(self, resolutions: Sequence[Resolution]) -> None:
        """A row for each size asked for that no engine holds."""
        missing = partial(ParityRow, engine="–", part=None, mode=None, status="error")
        self.rows += [
            missing(reason=f"no engine holds {size}", resolution=size)
            for size in resolutions
            if size not in self._sizes
        ]

    def execute(self) -> None:
        for job in self._jobs:
            target = job.target
            whole = partial(job.row, resolution=target.resolution)
            try:
                weights, vae = self.model.weights_sha256, self.model.kind.name
                wanted = Wanted(backend=job.backend, weights_sha256=weights, vae=vae)
                engine = Engine.open(target, Purpose.VERIFY, wanted)
            except QvaeError as error:
                self._done += len(job.steps) + len(job.ends)
                fix = None if isinstance(error, StaleEngineError) else error.fix
                fix = fix or self._rebuild(target, job.sidecar)
                self.rows.append(whole(status="error", reason=_one_line(error), fix=fix))
                continue
            self._check_response(job, whole)
            with closing(engine):
                for size, profile, name in job.steps:
                    self._compare(job, engine, size, profile, name)
                for size, profile in job.ends:
                    self._check_end(job, engine, size, profile)

    def _begin(self, row: ParityRow, part: Part, name: str, size: Resolution) -> Array:
        """The input of a row, told of before it is made."""
        count = sum(len(job.steps) + len(job.ends) for job in self._jobs)
        text = f"{row.engine} {size} {name}"
        self.on_event(Event(kind="start", text=text, index=self._done, count=count))
        self._done += 1
        return self.reference.input(part, name, size)

    def _check_response(self, job: _Job, whole: Callable[..., ParityRow]) -> None:
        """A row for each output that does not depend on the input in PyTorch either: such an output
        proves nothing about an engine.
        """
        part, bounds = job.target.part, BOUNDS[job.sidecar.key.precision]
        if part not in self._responses:
            self._responses[part] = self.reference.response(part)
        for output, change in self._responses[part].items():
            if change <= bounds[output].relative_l2:
                reason = f"{output}: the same for any input, in PyTorch as well"
                fix = f"No build mends the weights of {self.model.source}: name other ones."
                self.rows.append(whole(status="broken", reason=reason, fix=fix))

    def _check_end(self, job: _Job, engine: Engine, size: Resolution, profile: int) -> None:
        """An end of a range: the engine must run there."""
        name = PICTURES[0] if job.target.part == "encoder" else LATENTS[1]
        reason = "it runs at the end of a range, and was not compared there"
        row = job.row(
            resolution=size, profile_index=profile, input=name, status="passed", reason=reason
        )
        x = self._begin(row, job.target.part, name, size)
        outputs = self._run(job, engine, row, x, profile, full="not run")
        if outputs is None:
            return
        if not all(np.isfinite(value).all() for value in outputs.values()):
            reason, fix = "NaN or infinity at the end of a range", self._mend(job)
            row = replace(row, status="broken", reason=reason, fix=fix)
        self.rows.append(row)

    def _compare(
        self, job: _Job, engine: Engine, size: Resolution, profile: int, name: str
    ) -> None:
        part = job.target.part
        index = profile if job.target.mode == "profiles" else None
        row = job.row(resolution=size, profile_index=index, input=name, status="error")
        x = self._begin(row, part, name, size)
        outputs = self._run(job, engine, row, x, profile, full="error")
        if outputs is None:
            return
        fp32, source = self._torch(part, size, name, x, "fp32")
        bf16, yardstick_source = self._torch(part, size, name, x, "bf16")
        row = replace(row, source=source, yardstick_source=yardstick_source)
        bounds = BOUNDS[job.sidecar.key.precision]
        for output, found in compare(fp32, bf16, outputs, bounds).items():
            compared = replace(row, output=output, comparison=found, status="passed")
            if not found.passed:
                reason, fix = explain(found.checks), self._mend(job)
                compared = replace(compared, status="broken", reason=reason, fix=fix)
            self.rows.append(compared)

    def _run(
        self, job: _Job, engine: Engine, row: ParityRow, x: Array, profile: int, *, full: Status
    ) -> Outputs | None:
        """The engine's outputs on the input of a row; without any, a row that says why.

        Args:
            full: the status where the device has too little memory.
        """
        try:
            with torch.inference_mode():
                y = engine.run(torch.from_numpy(x).to(engine.device), profile=profile)
            return split_outputs(job.target.part, y.float().cpu().numpy())
        except QvaeError as error:
            status: Status = full if isinstance(error, DeviceMemoryError) else "error"
            fix = None if status == "not run" else error.fix or self._mend(job)
            self.rows.append(replace(row, status=status, reason=error.what, fix=fix))
            return None

    def _torch(
        self, part: Part, size: Resolution, name: str, x: Array, dtype: Dtype
    ) -> tuple[Outputs, Source]:
        """PyTorch's outputs. The last few are kept."""
        key = (part, size, name, dtype)
        if key not in self._cache:
            source = self.reference.source(size, dtype)
            outputs = self.reference.run(part, x, dtype)
            if part == "encoder" and dtype == "fp32" and name == PICTURES[0]:
                self.reference.remember(size, outputs)
            while len(self._cache) >= _KEPT:
                self._cache.pop(next(iter(self._cache)))
            self._cache[key] = (outputs, source)
        return self._cache[key]

    def _mend(self, job: _Job) -> str:
        return self._rebuild(job.target, job.sidecar, force=True)

    def _rebuild(self, target: EngineFile, sidecar: Sidecar | None, *, force: bool = False) -> str:
        return rebuild(target, sidecar, engine_dir=self.engine_dir, model=self.model, force=force)


#: PyTorch results kept at once: both dtypes of both inputs of one part and size.
_KEPT = 4


def _one_line(error: QvaeError) -> str:
    """An error in one line; its lines are joined by semicolons, but for those after a colon."""
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
        "qvae": __version__,
        **{name: importlib.metadata.version(name) for name in names},
        **versions,
    }
