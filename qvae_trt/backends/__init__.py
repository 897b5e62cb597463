"""What builds and runs engines: one protocol, and the adapters that satisfy it.

An adapter takes raw pointers and plain shapes, never torch tensors. Only modules of this package
import `tensorrt`, `tensorrt_rtx` or `onnxruntime`, and only when an adapter is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from qvae_trt.backends.devices import Device
from qvae_trt.errors import BackendError, BuildError, EngineError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.profiles import Precision
    from qvae_trt.store import Sidecar

__all__ = [
    "ALIGNMENT_BYTES",
    "DTYPES",
    "NAMES",
    "Backend",
    "BuildOutcome",
    "BuildSpec",
    "Device",
    "Progress",
    "Session",
    "ShapeRange",
    "TensorSpec",
    "Verdict",
    "for_engine",
    "get",
    "resolve",
]

# onnxruntime 1.32 on Linux reports its use to its maker over the network, and leaves files in the
# home and the temporary folder, unless this stands before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

DTypeName = Literal["float16", "bfloat16", "float32"]
#: What addresses of device memory are multiples of. TensorRT asks for 256 bytes; its version 10 has
#: been seen to ask for 512.
ALIGNMENT_BYTES = 512
NAMES: tuple[str, ...] = ("tensorrt", "tensorrt_rtx", "onnxruntime")
DTYPES: dict[Precision, DTypeName] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}

Progress = Callable[[str, int, int], bool]
"""`(stage, done, total) -> go on?`. May be called from another thread; on False the
build stops and raises KeyboardInterrupt."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An engine's input or output; -1 stands for a side that varies."""

    name: str
    dtype: DTypeName
    shape: tuple[int, ...]

    @classmethod
    def of(cls, held: Mapping[str, Any]) -> TensorSpec:
        """What became of one on its way through JSON."""
        return cls(held["name"], held["dtype"], tuple(held["shape"]))


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The input shapes (5-D) of one optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @classmethod
    def fixed(cls, shape: tuple[int, ...]) -> ShapeRange:
        return cls(shape, shape, shape)

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why a shape is outside; None if it is inside."""
        if len(shape) != len(self.min):
            return f"{len(shape)} dimensions, expected {len(self.min)}"
        sides = zip(shape, self.min, self.max, strict=True)
        outside = [
            f"dimension {axis} is {side}, expected {low}..{high}"
            for axis, (side, low, high) in enumerate(sides)
            if not low <= side <= high
        ]
        return "; ".join(outside) or None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something can be done here, why, and what would mend it."""

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
        input_name: the graph's one input.
        ranges: one for each optimization profile; a single fixed one makes a static engine.
        level: TensorRT's builder optimization level, 0 to 5; None leaves its default.
        timing_cache: where to keep timings between builds. GPU, version and precision are put into
            the file's name.
    """

    input_name: str
    ranges: tuple[ShapeRange, ...]
    precision: Precision
    level: int | None = None
    timing_cache: Path | None = None

    def check(self) -> None:
        """UsageError for what no backend takes: no range, min > opt or opt > max, a level past 5.

        TensorRT-RTX accepts a profile whose opt is past its max, so this is not left to TensorRT.
        """
        if not self.ranges:
            raise UsageError("no shape range given: expected at least one")
        if self.level is not None and not 0 <= self.level <= 5:
            raise UsageError(f"level {self.level}: expected 0 to 5")
        for index, sizes in enumerate(self.ranges):
            if not len(sizes.min) == len(sizes.opt) == len(sizes.max):
                raise UsageError(f"profile {index}: min, opt and max differ in rank: {sizes}")
            for axis, (low, opt, high) in enumerate(
                zip(sizes.min, sizes.opt, sizes.max, strict=True)
            ):
                if not 0 < low <= opt <= high:
                    raise UsageError(
                        f"profile {index}, dimension {axis}: min {low}, opt {opt}, max {high}: "
                        "expected 0 < min <= opt <= max"
                    )

    def check_input(self, source: TensorSpec) -> None:
        """BuildError where a graph's input has another name, rank or fixed side than asked for."""
        if source.name != self.input_name:
            raise BuildError(f"the graph's input is {source.name}, expected {self.input_name}")
        for index, sizes in enumerate(self.ranges):
            if len(sizes.min) != len(source.shape):
                raise BuildError(
                    f"profile {index}: {len(sizes.min)} dimensions, {source.name} has "
                    f"{len(source.shape)}"
                )
            for axis, side in enumerate(source.shape):
                if side != -1 and not sizes.min[axis] == sizes.max[axis] == side:
                    raise BuildError(
                        f"profile {index}: dimension {axis} of {source.name} is fixed at {side}, "
                        f"asked for {sizes.min[axis]} to {sizes.max[axis]}"
                    )


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """What was built. `flags` holds everything that shaped the engine; `warnings` what the user
    should hear.
    """

    flags: dict[str, str]
    seconds: float
    input: TensorSpec
    output: TensorSpec
    warnings: tuple[str, ...] = ()


class Session(Protocol):
    """A loaded engine with one execution context. Not for two threads at once."""

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
        self, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress | None = None
    ) -> BuildOutcome:
        """Builds `onnx` and writes the engine to `out`, not atomically: that is the store's work.

        Raises: BackendError (cannot be done here), BuildError, DeviceMemoryError, StoreError.
        """

    def open(self, engine: Path) -> Session:
        """Raises: EngineError, StaleEngineError, DeviceMemoryError, BackendError."""

    def inspect(self, engine: Path) -> dict[str, object]:
        """JSON-ready: tensors, profiles, memory, layers."""


def get(name: str) -> Backend:
    """The backend of that name.

    `auto` is `tensorrt` where it imports and a GPU answers, else `onnxruntime`.

    Raises:
        UsageError: no such name.
        BackendError: its Python package is not installed or does not load.
    """
    name = resolve(name)
    if name == "onnxruntime":
        from qvae_trt.backends.onnxruntime import OnnxRuntime

        return OnnxRuntime()
    from qvae_trt.backends.tensorrt import TensorRT

    return TensorRT(name)


def resolve(name: str) -> str:
    """`auto` -> the name of the backend it stands for; any other known name as it is."""
    if name == "auto":
        from qvae_trt.backends.tensorrt import TensorRT

        try:
            usable = TensorRT("tensorrt").can_run().ok
        except BackendError:
            usable = False
        return "tensorrt" if usable else "onnxruntime"
    if name not in NAMES:
        raise UsageError(f"backend {name!r}: expected auto, {', '.join(NAMES)}")
    return name


def for_engine(path: Path, sidecar: Sidecar | None = None) -> Backend:
    """The backend that runs an engine file: its sidecar says which, else the file's suffix."""
    if sidecar is not None:
        return get(sidecar.key.flavour)
    if path.suffix == ".onnx":
        return get("onnxruntime")
    if path.suffix == ".trt":
        return get("tensorrt")
    raise EngineError(
        f"{path}: the suffix {path.suffix!r} is no engine's: expected .trt or .onnx",
        fix="qvae build makes engines with a sidecar that says what they are",
    )
