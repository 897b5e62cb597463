"""What a backend is: the one protocol of all adapters, and what it takes and gives.

An adapter takes raw pointers and plain shapes, never torch tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from qvae_trt import json_rows
from qvae_trt.backends.devices import Device
from qvae_trt.errors import BackendError, EngineError
from qvae_trt.profiles import Precision
from qvae_trt.progress import Progress, ignore
from qvae_trt.tensors import ShapeRange, TensorSpec

#: What addresses of device memory are multiples of. TensorRT asks for 256 bytes; its version 10 has
#: been seen to ask for 512.
ALIGNMENT_BYTES = 512


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something can be done here, why, and what would fix it."""

    ok: bool
    reason: str
    fix: str | None = None

    def require(self) -> None:
        """BackendError with the reason, unless ok."""
        if not self.ok:
            raise BackendError(self.reason, fix=self.fix)


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """What to build of an ONNX file.

    Attributes:
        ranges: one for each optimization profile, min <= opt <= max; a single fixed one makes a
            static engine.
        level: TensorRT's builder optimization level, 0 to 5; None leaves its default.
        timing_cache: where to keep timings between builds. GPU, version and precision are put into
            the file's name.
    """

    ranges: tuple[ShapeRange, ...]
    precision: Precision
    level: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What was built. `flags` holds everything that shaped the engine; `warnings` what the user
    should be told.
    """

    flags: dict[str, str]
    input: TensorSpec
    output: TensorSpec
    warnings: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded engine. Not for two threads at once."""

    input: TensorSpec
    output: TensorSpec
    ranges: tuple[ShapeRange, ...]
    device_type: Literal["cuda", "cpu"]
    #: `execute` only enqueues, so that a CUDA graph can be captured of it.
    capturable: bool

    def select(self, shape: tuple[int, ...], profile: int, stream: int = 0) -> int:
        """Sets profile and input shape; work that this needs is enqueued on `stream`.

        Returns: the scratch bytes that `execute` needs: of exactly this shape where the backend can
            say so, else of the engine's largest.
        Raises: EngineError where the profile does not exist or does not hold the shape.
        """

    def output_shape(self) -> tuple[int, ...]:
        """The output's shape for the selected input shape."""

    def execute(
        self, *, input_ptr: int, output_ptr: int, scratch_ptr: int, scratch_bytes: int, stream: int
    ) -> None:
        """Enqueues one run on `stream` (CPU: runs). Pointers are of contiguous device tensors, on
        CUDA multiples of `ALIGNMENT_BYTES`.

        Raises: ExecutionError, DeviceMemoryError; EngineError before any `select` or with too
            little scratch.
        """

    def inspect(self) -> dict[str, object]:
        """JSON-ready: tensors, profiles, memory, layers."""

    def close(self) -> None:
        """Frees the engine. The caller has waited for its last run."""


class Backend(Protocol):
    """A way to build and run engines."""

    name: str
    suffix: str

    def version(self) -> str: ...

    def device(self) -> Device | None:
        """The device that engines run on here; None where there is none."""

    def can_build(self) -> Verdict: ...

    def can_run(self) -> Verdict: ...

    def supports(self, precision: Precision) -> Verdict: ...

    def identity(self) -> dict[str, str | None]:
        """The fields of `store.EngineKey` that this backend and this machine decide.

        `flavour`, `flavour_version`, `gpu`, `compute_capability`: `build` writes them, a loader
        expects them.
        """

    def build(
        self, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress = ignore
    ) -> BuildOutcome:
        """Builds `onnx` and writes the engine to `out`, not atomically: that is the store's work.

        Raises: BackendError (cannot be done here), BuildError, DeviceMemoryError, StoreError.
        """

    def open(self, engine: Path) -> Session:
        """Raises: EngineError, StaleEngineError, DeviceMemoryError, BackendError."""


def check_shape(session: Session, shape: tuple[int, ...], profile: int) -> None:
    """EngineError where an engine has no such profile, or it does not hold the shape."""
    if not 0 <= profile < len(session.ranges):
        raise EngineError(f"profile {profile}: the engine has {len(session.ranges)}")
    refusal = session.ranges[profile].refusal(shape)
    if refusal is not None:
        name = session.input.name
        raise EngineError(f"{name} {list(shape)}: {refusal} (profile {profile})")


def describe(session: Session) -> dict[str, object]:
    """What `inspect` tells of every engine."""
    return {
        "input": json_rows.write(session.input),
        "output": json_rows.write(session.output),
        "profiles": json_rows.write(session.ranges),
    }
