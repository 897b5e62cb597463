"""The run: engines, sizes and inputs, one comparison after the other."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
from qvae_trt.opening import Purpose
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import show
from qvae_trt.verify.bounds import BOUNDS, Output
from qvae_trt.verify.comparison import BF16, FP32, compare, run
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
from qvae_trt.verify.report import ParityRow, VerifyReport, explain
from qvae_trt.verify.targets import ends_of, left_out, sizes_of
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.backends import Backend
    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Resolution
    from qvae_trt.store import EngineFile, Sidecar


#: Told what is about to run: its words, how many steps are done, and of how many.
OnStep = Callable[[str, int, int], object]


def verify(
    engine_dir: Path,
    *,
    model: str,
    resolutions: Sequence[Resolution] = (),
    backend: str = "auto",
    on_step: OnStep | None = None,
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
        on_step: told before each comparison.

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
    parity = _Parity(engine_dir, loaded, Reference(loaded, device=device), on_step)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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


class _Parity:
    """One call of `verify`: what is to run, and the rows so far."""

    def __init__(
        self, engine_dir: Path, model: Model, reference: Reference, on_step: OnStep | None
    ) -> None:
        self.engine_dir = engine_dir
        self.model = model
        self.reference = reference
        self.on_step = on_step
        self.rows: list[ParityRow] = []
        self.notes: list[str] = []
        self.versions: dict[str, str] = {}
        self._jobs: list[_Job] = []
        self._sizes: set[Resolution] = set()
        self._done = 0
        self._responses: dict[Part, dict[Output, float]] = {}
        self._cache: dict[tuple[Part, Resolution, str, Dtype], tuple[Outputs, Source]] = {}

    def plan(
        self, target: EngineFile, resolutions: Sequence[Resolution], wanted: str | None
    ) -> None:
        """A job for an engine that can run here; for one that cannot, a row with the reason."""
        name = target.path.relative_to(self.engine_dir).as_posix()
        row = partial(ParityRow, engine=name, part=target.part, mode=target.mode)
        whole = partial(row, resolution=target.resolution)
        try:
            sidecar = store.read_sidecar(target.path)
        except ForeignEngineError as error:
            self.rows.append(whole(status="not run", reason=error.what))
            return
        except QvaeError as error:
            fix = self._rebuild(target, None)
            self.rows.append(whole(status="error", reason=error.what, fix=fix))
            return
        flavour, precision = sidecar.key.flavour, sidecar.key.precision
        row = partial(row, flavour=flavour, precision=precision)
        whole = partial(whole, flavour=flavour, precision=precision)
        if wanted is not None and flavour != wanted:
            reason = f"built by {show(flavour)}, asked for {wanted}"
            self.rows.append(whole(status="not run", reason=reason))
            return
        profiles, every_profile = sidecar.key.profiles, flavour != "onnxruntime"
        static = target.mode == "static"
        sizes = sizes_of(profiles, static=static, asked=resolutions, every_profile=every_profile)
        if not sizes:
            return
        self._sizes |= {size for size, _ in sizes}
        if not resolutions and (left := left_out(profiles, sizes)):
            self.notes.append(f"{name}: {left}")
        try:
            backend = backends.for_engine(target.path, sidecar)
            backend.can_run().require()
            backend.supports(precision).require()
        except BackendError as error:
            self.rows.append(whole(status="not run", reason=error.what))
            return
        self.versions[backend.name] = backend.version()
        names = PICTURES if target.part == "encoder" else LATENTS
        several = self.reference.device.type != "cpu"
        self._jobs.append(
            _Job(
                target=target,
                sidecar=sidecar,
                backend=backend,
                row=row,
                steps=[
                    (size, profile, name)
                    for size, profile in sizes
                    for name in names[: 2 if several or size.pixels <= DIFFUSERS_CPU_PIXELS else 1]
                ],
                ends=[]
                if resolutions
                else ends_of(profiles, every_profile=every_profile, besides=sizes),
            )
        )

    def missing(self, resolutions: Sequence[Resolution]) -> None:
        """A row for each size asked for that no engine holds."""
        self.rows += [
            ParityRow(
                engine="–",
                part=None,
                mode=None,
                status="error",
                reason=f"no engine holds {size}",
                resolution=size,
            )
            for size in resolutions
            if size not in self._sizes
        ]

    def execute(self) -> None:
        for job in self._jobs:
            target = job.target
            whole = partial(job.row, resolution=target.resolution)
            try:
                engine = Engine.open(
                    target,
                    Purpose.VERIFY,
                    backend=job.backend,
                    weights_sha256=self.model.weights_sha256,
                    vae=self.model.kind.name,
                )
            except QvaeError as error:
                self._done += len(job.steps) + len(job.ends)
                fix = None if isinstance(error, StaleEngineError) else error.fix
                fix = fix or self._rebuild(target, job.sidecar)
                self.rows.append(whole(status="error", reason=_one_line(error), fix=fix))
                continue
            self._doubt(job, whole)
            try:
                for size, profile, name in job.steps:
                    self._compare(job, engine, size, profile, name)
                for size, profile in job.ends:
                    self._try(job, engine, size, profile)
            finally:
                engine.close()

    def _begin(self, row: ParityRow) -> None:
        if self.on_step is not None:
            total = sum(len(job.steps) + len(job.ends) for job in self._jobs)
            self.on_step(f"{row.engine} {row.resolution} {row.input}", self._done, total)
        self._done += 1

    def _doubt(self, job: _Job, whole: Callable[..., ParityRow]) -> None:
        """A row for each output that PyTorch's own does not move with the input: an engine can only
        agree with it, whatever it does with its input.
        """
        part, bounds = job.target.part, BOUNDS[job.sidecar.key.precision]
        if part not in self._responses:
            self._responses[part] = self.reference.response(part)
        for output, change in self._responses[part].items():
            if change <= bounds[output].relative_l2:
                reason = f"{output}: the same for any input, in PyTorch as well"
                fix = f"No build mends the weights of {self.model.source}: name other ones."
                self.rows.append(whole(status="broken", reason=reason, fix=fix))

    def _try(self, job: _Job, engine: Engine, size: Resolution, profile: int) -> None:
        """An end of a range: the engine must run there."""
        part = job.target.part
        name = PICTURES[0] if part == "encoder" else LATENTS[1]
        reason = "it runs at the end of a range, and was not compared there"
        row = job.row(
            resolution=size, profile_index=profile, input=name, status="passed", reason=reason
        )
        self._begin(row)
        try:
            outputs = _run_engine(engine, part, self.reference.input(part, name, size), profile)
            if not all(np.isfinite(value).all() for value in outputs.values()):
                reason, fix = "NaN or infinity at the end of a range", self._mend(job)
                row = replace(row, status="broken", reason=reason, fix=fix)
        except DeviceMemoryError as error:
            row = replace(row, status="not run", reason=error.what)
        except QvaeError as error:
            fix = error.fix or self._mend(job)
            row = replace(row, status="error", reason=error.what, fix=fix)
        self.rows.append(row)

    def _compare(
        self, job: _Job, engine: Engine, size: Resolution, profile: int, name: str
    ) -> None:
        part = job.target.part
        index = profile if job.target.mode == "profiles" else None
        row = job.row(resolution=size, profile_index=index, input=name, status="error")
        self._begin(row)
        x = self.reference.input(part, name, size)
        try:
            outputs = run(
                row.engine,
                x,
                lambda given: _run_engine(engine, part, given, profile),
                input_name=engine.input.name,
            )
        except QvaeError as error:
            self.rows.append(replace(row, reason=error.what, fix=error.fix or self._mend(job)))
            return
        fp32, source = self._torch(part, size, name, x, "fp32")
        bf16, yardstick_source = self._torch(part, size, name, x, "bf16")
        bounds = BOUNDS[job.sidecar.key.precision]
        for output, found in compare(fp32, bf16, outputs, bounds).items():
            self.rows.append(
                replace(
                    row,
                    status="passed" if found.passed else "broken",
                    reason=explain(found.checks),
                    output=output,
                    source=source,
                    yardstick_source=yardstick_source,
                    comparison=found,
                    fix=None if found.passed else self._mend(job),
                )
            )

    def _torch(
        self, part: Part, size: Resolution, name: str, x: Array, dtype: Dtype
    ) -> tuple[Outputs, Source]:
        """PyTorch's outputs, through Polygraphy as well. The last few are kept."""
        key = (part, size, name, dtype)
        if key not in self._cache:
            source = self.reference.source(size, dtype)
            title = FP32 if dtype == "fp32" else BF16
            outputs = run(title, x, lambda given: self.reference.run(part, given, dtype))
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
        "qvae": __version__,
        **{name: importlib.metadata.version(name) for name in names},
        **versions,
    }
