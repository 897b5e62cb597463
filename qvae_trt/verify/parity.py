"""The run: engines, sizes and inputs, one comparison after the other."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from qvae_trt import backends, store
from qvae_trt.commands import build_command, rebuild_command
from qvae_trt.errors import (
    BackendError,
    DeviceMemoryError,
    EngineError,
    ForeignEngineError,
    QvaeError,
    StaleEngineError,
)
from qvae_trt.model import Model, load_model
from qvae_trt.opening import Wanted
from qvae_trt.profiles import BACKENDS, Part, Profile, Resolution, nearest
from qvae_trt.progress import Event, OnEvent, ignore
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import EngineFile, Sidecar, show
from qvae_trt.verify.bounds import BOUNDS, Bounds, compare
from qvae_trt.verify.inputs import LATENTS, PICTURES, Output
from qvae_trt.verify.reference import DIFFUSERS_CPU_PIXELS, Outputs, Reference, split_outputs
from qvae_trt.verify.report import ParityRow, VerifyReport, explain
from qvae_trt.version import __version__


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
class _Step:
    """One run of an engine; its result is compared, or (an end of a range) need only be numbers."""

    size: Resolution
    profile: int
    input: str
    compared: bool


@dataclass(frozen=True, slots=True)
class _Job:
    """One engine and its runs.

    Attributes:
        row: makes a row of this engine; rebuild: the command that builds it again.
    """

    target: EngineFile
    backend: backends.Backend
    bounds: Mapping[Output, Bounds]
    row: Callable[..., ParityRow]
    rebuild: Callable[..., str]
    steps: list[_Step]


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
            sizes = sizes_of(profiles, asked=resolutions, every_profile=every_profile)
            if not sizes:
                return
            self._sizes |= {size for size, _ in sizes}
            if not resolutions and (left := left_out(profiles, sizes)):
                self.notes.append(f"{name}: {left}")
            backend = backends.for_engine(target.path, sidecar)
            backend.can_run().require()
            backend.supports(precision).require()
        except QvaeError as error:
            refused = row(resolution=target.resolution, status="not run", reason=error.what)
            if not isinstance(error, ForeignEngineError | BackendError):
                fix = rebuild(target, None, model=self.model)
                refused = replace(refused, status="error", fix=fix)
            self.rows.append(refused)
            return
        self.versions[backend.name] = backend.version()
        names = PICTURES if target.part == "encoder" else LATENTS
        several = self.reference.device.type != "cpu"
        steps = [
            _Step(size, profile, name, compared=True)
            for size, profile in sizes
            for name in names[: 2 if several or size.pixels <= DIFFUSERS_CPU_PIXELS else 1]
        ]
        if not resolutions:
            name = PICTURES[0] if target.part == "encoder" else LATENTS[1]
            ends = ends_of(profiles, every_profile=every_profile, besides=sizes)
            steps += [_Step(size, profile, name, compared=False) for size, profile in ends]
        again = partial(rebuild, target, sidecar, model=self.model)
        self._jobs.append(_Job(target, backend, BOUNDS[precision], row, again, steps))

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
                engine = Engine.open(target, wanted)
            except QvaeError as error:
                self._done += len(job.steps)
                fix = None if isinstance(error, StaleEngineError) else error.fix
                fix = fix or job.rebuild()
                self.rows.append(whole(status="error", reason=_one_line(error), fix=fix))
                continue
            self._check_response(job, whole)
            with closing(engine):
                for step in job.steps:
                    self.rows += self._step(job, engine, step)

    def _check_response(self, job: _Job, whole: Callable[..., ParityRow]) -> None:
        """A row for each output that does not depend on the input in PyTorch either: such an output
        proves nothing about an engine.
        """
        part = job.target.part
        if part not in self._responses:
            self._responses[part] = self.reference.response(part)
        for output, change in self._responses[part].items():
            if change <= job.bounds[output].relative_l2:
                reason = f"{output}: the same for any input, in PyTorch as well"
                fix = f"No build mends the weights of {self.model.source}: name other ones."
                self.rows.append(whole(status="broken", reason=reason, fix=fix))

    def _step(self, job: _Job, engine: Engine, step: _Step) -> list[ParityRow]:
        """A row for each output that was compared, or the one row that says why there is none."""
        part, size, name = job.target.part, step.size, step.input
        profile = step.profile if job.target.mode == "profiles" else None
        row = job.row(resolution=size, profile=profile, input=name, status="passed")
        count, text = sum(len(job.steps) for job in self._jobs), f"{row.engine} {size} {name}"
        self.on_event(Event(kind="start", text=text, index=self._done, count=count))
        self._done += 1
        x = self.reference.input(part, name, size)
        try:
            with torch.inference_mode():
                y = engine.run(torch.from_numpy(x).to(engine.device), profile=step.profile)
        except QvaeError as error:
            # An end of a range may need more memory than this device has.
            if isinstance(error, DeviceMemoryError) and not step.compared:
                return [replace(row, status="not run", reason=error.what)]
            fix = error.fix or job.rebuild(force=True)
            return [replace(row, status="error", reason=error.what, fix=fix)]
        outputs = split_outputs(part, y.float().cpu().numpy())
        if step.compared:
            return self._compared(job, row, size, name, outputs)
        if all(np.isfinite(value).all() for value in outputs.values()):
            reason = "it runs at the end of a range, and was not compared there"
            return [replace(row, reason=reason)]
        reason, fix = "NaN or infinity at the end of a range", job.rebuild(force=True)
        return [replace(row, status="broken", reason=reason, fix=fix)]

    def _compared(
        self, job: _Job, row: ParityRow, size: Resolution, name: str, outputs: Outputs
    ) -> list[ParityRow]:
        part, rows = job.target.part, []
        fp32, source = self.reference.outputs(part, name, size, "fp32")
        bf16, yardstick = self.reference.outputs(part, name, size, "bf16")
        row = replace(row, reference=source, yardstick=yardstick)
        for output, found in compare(fp32, bf16, outputs, job.bounds).items():
            rows.append(replace(row, output=output, comparison=found))
            if not found.passed:
                reason, fix = explain(found.checks), job.rebuild(force=True)
                rows[-1] = replace(rows[-1], status="broken", reason=reason, fix=fix)
        return rows


# --- at which sizes -------------------------------------------------------------------------------


def sizes_of(
    profiles: Sequence[Profile], *, asked: Sequence[Resolution] = (), every_profile: bool
) -> list[tuple[Resolution, int]]:
    """The sizes to verify an engine at, each with its profile: small sizes first.

    A static engine runs at its size. An engine with profiles runs at the opt of every profile,
    where kernels are chosen for each profile (`every_profile`), else at the smallest and the
    largest opt; and at one size that is no opt, inside the profile with the smallest opt, which
    must work as well.

    Args:
        asked: only these sizes, those that the engine holds.
    """
    if asked:
        sizes = list(asked)
    else:
        opts = sorted((p.opt for p in profiles), key=lambda r: (r.pixels, r))
        sizes = opts if every_profile else [opts[0], opts[-1]]
        sizes += [between] if (between := off_grid(profiles)) is not None else []
    ordered = sorted(set(sizes), key=lambda r: (r.pixels, r))
    served = [(size, nearest(size, profiles)) for size in ordered]
    return [(size, index) for size, index in served if index is not None]


def left_out(profiles: Sequence[Profile], sizes: Sequence[tuple[Resolution, int]]) -> str | None:
    """Says how many opts are checked, if not all are (one graph serves all profiles); else None."""
    opts = {p.opt for p in profiles}
    checked = opts & {size for size, _ in sizes}
    if checked == opts:
        return None
    return f"{len(checked)} of {len(opts)} opts checked, since one graph serves all"


def ends_of(
    profiles: Sequence[Profile], *, every_profile: bool, besides: Sequence[tuple[Resolution, int]]
) -> list[tuple[Resolution, int]]:
    """Where the ranges of an engine end, each with its profile: what no opt shows to run.

    Of one graph for all profiles, the smallest and the largest size.

    Args:
        besides: sizes that are run anyway.
    """
    ends = [(end, index) for index, p in enumerate(profiles) for end in (p.min, p.max)]
    ends.sort(key=lambda end: (end[0].pixels, end[0]))
    return [end for end in (ends if every_profile else [ends[0], ends[-1]]) if end not in besides]


def off_grid(profiles: Sequence[Profile]) -> Resolution | None:
    """A size that is the opt of no profile, in the profile with the smallest opt that has room for
    one.
    """
    opts = {p.opt for p in profiles}
    for profile in sorted(profiles, key=lambda p: (p.opt.pixels, p.opt)):
        low, high = profile.min, profile.max
        height = _step(low.height + 0.3 * (profile.opt.height - low.height), low.height)
        width = _step(profile.opt.width + 0.1 * (high.width - profile.opt.width), low.width)
        size = Resolution(height, width)
        if size not in opts and profile.holds(size):
            return size
    return None


def _step(side: float, low: int) -> int:
    return max(low, round(side / 16) * 16)


# --- in words -------------------------------------------------------------------------------------


def rebuild(
    engine: EngineFile, sidecar: Sidecar | None, *, model: Model, force: bool = False
) -> str:
    """The command that builds an engine again: the one that built it, unless from other weights."""
    backend = "onnxruntime" if engine.path.suffix == ".onnx" else None
    asked: dict[str, object] = {"model": model.source, "backend": backend}
    built_by = ""
    if sidecar is not None:
        key, wanted = sidecar.key, {**engine.place, "weights_sha256": model.weights_sha256}
        built_by = "" if store.differences(key, wanted) else sidecar.command
        backend = key.flavour if key.flavour in BACKENDS else None
        asked |= {"backend": backend, "precision": key.precision}
    return rebuild_command(engine.path, built_by=built_by, force=force, **asked)


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
