"""ONNX Runtime: the engine is the graph as it left the optimizer, one `.onnx` file.

Its ranges are in the file's metadata, and a shape outside them is refused as TensorRT refuses it,
although ONNX Runtime itself would run any: what is tested here on a CPU then holds on a GPU.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from qvae_trt.backends import devices
from qvae_trt.backends.devices import Device
from qvae_trt.backends.protocol import (
    BuildOutcome,
    BuildSpec,
    Session,
    Verdict,
    check_shape,
    describe,
)
from qvae_trt.commands import rebuild_command
from qvae_trt.errors import (
    BackendError,
    BuildError,
    DeviceMemoryError,
    EngineError,
    ExecutionError,
    ForeignEngineError,
)
from qvae_trt.files.writing import refusals_named, workplace
from qvae_trt.profiles import BACKENDS, Precision
from qvae_trt.progress import Progress, ignore
from qvae_trt.tensors import DTypeName, ShapeRange, TensorSpec

RANGES_KEY = "qvae.ranges"
_DTYPES: dict[str, DTypeName] = {
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(float)": "float32",
}
#: A side: fixed, or as `export` names those that vary.
_SIDE = re.compile(r"(?:([1-9][0-9]*)\*)?[hw]|[0-9]+")
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class OnnxRuntime:
    """`backends.Backend` on the CPU, or on a GPU where onnxruntime has its CUDA provider.

    Raises (on construction):
        BackendError: the package is missing or does not load.
    """

    name = "onnxruntime"
    suffix = BACKENDS["onnxruntime"]

    def __init__(self) -> None:
        try:
            import onnxruntime
        except (ImportError, OSError) as error:
            raise BackendError(
                f"onnxruntime does not import: {error}", fix="pip install onnxruntime"
            ) from error
        self._ort: Any = onnxruntime
        if hasattr(onnxruntime, "disable_telemetry_events"):
            onnxruntime.disable_telemetry_events()  # where the variable came too late

    def version(self) -> str:
        return str(self._ort.__version__)

    @property
    def uses_cuda(self) -> bool:
        return _CUDA in self._ort.get_available_providers() and bool(devices.gpus())

    def device(self) -> Device:
        return (devices.gpu() if self.uses_cuda else None) or Device("cpu")

    def identity(self) -> dict[str, str | None]:
        """See `backends.Backend.identity`."""
        device = self.device()
        return {
            "flavour": self.name,
            "flavour_version": self.version(),
            "gpu": device.name,
            "compute_capability": device.compute_capability,
        }

    def can_build(self) -> Verdict:
        return self.can_run()

    def can_run(self) -> Verdict:
        where = self.device().name if self.uses_cuda else "the CPU"
        return Verdict(True, f"onnxruntime {self.version()} on {where}")

    def supports(self, precision: Precision) -> Verdict:
        if precision == "bf16":
            what = f"onnxruntime {self.version()} has no bf16 convolution"
            return Verdict(False, what, "--precision fp16 or --precision fp32")
        return Verdict(True, f"onnxruntime has {precision}")

    def build(
        self, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress = ignore
    ) -> BuildOutcome:
        """See `backends.Backend.build`. `level` and `timing_cache` mean nothing here."""
        self.supports(spec.precision).require()
        options = self._options()
        # The extended level is the last whose graph does not depend on this machine's processor.
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # The folder first: an interruption while it is being made, which is when the user reads
        # that building has begun, would leave it behind.
        with workplace() as folder:
            progress("optimize", 0, 1)
            optimized = folder / "engine.onnx"
            options.optimized_model_filepath = str(optimized)
            with refusals_named("write", optimized), _full_disk_named(onnx, folder):
                session = self._session(onnx, options, BuildError)
            source, result = _describe(session)
            _factors(onnx, session)  # else no engine
            del session
            _write(optimized, out, spec.ranges, weights_in=onnx.parent)
        progress("optimize", 1, 1)
        return BuildOutcome(
            flags={
                "graph_optimization": "extended",
                "providers": " ".join(self._providers()),
                "profiles": str(len(spec.ranges)),
            },
            input=source,
            output=result,
            warnings=tuple(_unused(spec)),
        )

    def open(self, engine: Path) -> Session:
        """Raises: EngineError, ForeignEngineError (no ranges in the file), DeviceMemoryError."""
        if not engine.is_file():
            raise EngineError(f"{engine}: no such engine", fix=f"build it: {_rebuild(engine)}")
        options = self._options()
        # The file holds the optimized graph; what is left is this processor's own layout.
        session = self._session(engine, options, EngineError)
        device_id = devices.current_index() if self.uses_cuda else None
        return OnnxRuntimeSession(engine, session, device_id=device_id)

    def _providers(self) -> list[str]:
        return [_CUDA, _CPU] if self.uses_cuda else [_CPU]

    def _options(self) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3  # errors; they come back as exceptions too
        # An arena keeps the largest it ever saw, and was no faster (512x512, 2 cores).
        options.enable_cpu_mem_arena = False
        return options

    def _session(self, path: Path, options: Any, kind: type[BuildError | EngineError]) -> Any:
        providers: list[object] = list(self._providers())
        if self.uses_cuda:  # which takes the first GPU otherwise, wherever the tensors are
            providers[0] = (_CUDA, {"device_id": devices.current_index()})
        fix = f"build it again: {_rebuild(path)} --force"
        with _failures_named(f"{path}: onnxruntime {self.version()} does not load it", kind, fix):
            return self._ort.InferenceSession(str(path), options, providers=providers)


class OnnxRuntimeSession:
    """`backends.Session`: pointers are host addresses (device addresses with the CUDA provider).

    `execute` returns when the run is done: ONNX Runtime does not know the caller's stream, so a
    CUDA run waits for it first, and cannot be captured.
    """

    capturable = False

    def __init__(self, path: Path, session: Any, *, device_id: int | None) -> None:
        self._path, self._session = path, session
        self._device_id = device_id or 0
        self.device_type: Literal["cuda", "cpu"] = "cpu" if device_id is None else "cuda"
        self.input, self.output = _describe(session)
        self.ranges = _read_ranges(path, session, len(self.input.shape))
        self._factors = _factors(path, session)
        self._selected: tuple[int, ...] = ()

    def select(self, shape: tuple[int, ...], profile: int, stream: int = 0) -> int:  # noqa: ARG002
        """Remembers the shape. Returns 0: ONNX Runtime allocates its own scratch."""
        check_shape(self, shape, profile)
        self._selected = shape
        return 0

    def output_shape(self) -> tuple[int, ...]:
        """By the names of the sides: one of `8*h` is 8 times as long as one of `h`."""
        sides = zip(self.output.shape, self._selected, *self._factors, strict=True)
        return tuple(
            now * after // before if side < 0 else side for side, now, before, after in sides
        )

    def execute(
        self,
        *,
        input_ptr: int,
        output_ptr: int,
        scratch_ptr: int,  # noqa: ARG002
        scratch_bytes: int,  # noqa: ARG002
        stream: int,
    ) -> None:
        """Runs. Raises: ExecutionError, DeviceMemoryError."""
        if self.device_type == "cuda":
            status = devices.synchronize(stream)
            if status != 0:
                raise ExecutionError(f"the caller's CUDA stream failed (error {status})")
        import numpy

        binding = self._session.io_binding()
        for bind, tensor, sides, pointer in (
            (binding.bind_input, self.input, self._selected, input_ptr),
            (binding.bind_output, self.output, self.output_shape(), output_ptr),
        ):
            dtype = numpy.dtype(tensor.dtype)
            bind(tensor.name, self.device_type, self._device_id, dtype, sides, pointer)
        with _failures_named(f"the engine failed on {list(self._selected)}", ExecutionError):
            self._session.run_with_iobinding(binding)

    def inspect(self) -> dict[str, object]:
        """Tensors, profiles, providers and the count of each operation."""
        import onnx

        nodes = onnx.load(str(self._path), load_external_data=False).graph.node
        return {
            **describe(self),
            "scratch_bytes": None,
            "profile_scratch_bytes": None,
            "providers": self._session.get_providers(),
            "operations": dict(Counter(node.op_type for node in nodes).most_common()),
            "layers": [
                {"Name": node.name, "LayerType": node.op_type, "Outputs": list(node.output)}
                for node in nodes
            ],
        }

    def close(self) -> None:
        self._session = None


def _describe(session: Any) -> tuple[TensorSpec, TensorSpec]:
    ways = (session.get_inputs(), session.get_outputs())
    if len(ways[0]) != 1 or len(ways[1]) != 1:
        raise EngineError(f"{len(ways[0])} inputs and {len(ways[1])} outputs: expected one of each")
    found = []
    for (tensor,) in ways:
        dtype = _DTYPES.get(tensor.type)
        if dtype is None:
            raise EngineError(f"{tensor.name} is {tensor.type}: expected a float tensor")
        shape = tuple(side if isinstance(side, int) else -1 for side in tensor.shape)
        found.append(TensorSpec(tensor.name, dtype, shape))
    return found[0], found[1]


@contextmanager
def _failures_named(
    what: str, kind: type[BuildError | EngineError], fix: str | None = None
) -> Iterator[None]:
    """What onnxruntime raises inside as an error of a kind, or as one of memory."""
    try:
        yield
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        theirs = isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime")
        if not theirs:
            raise
        text = str(error).strip()
        what = f"{what}: {(text.splitlines() or ['no reason given'])[0][:600]}"
        memory = ("bad_alloc", "failed to allocate", "out of memory")
        if any(sign in text.lower() for sign in memory):
            raise DeviceMemoryError(what) from error
        raise kind(what, fix=fix) from error


@contextmanager
def _full_disk_named(onnx: Path, folder: Path) -> Iterator[None]:
    """OSError where a graph of that size has no room in a folder: onnxruntime does not say so."""
    try:
        yield
    except BuildError as error:
        if shutil.disk_usage(folder).free >= onnx.stat().st_size:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _write(optimized: Path, out: Path, ranges: tuple[ShapeRange, ...], *, weights_in: Path) -> None:
    import onnx

    # Weights that the graph has in a file of their own stay there, named from the graph's folder.
    model = onnx.load(str(optimized), load_external_data=False)
    onnx.load_external_data_for_model(model, str(weights_in))
    entry = model.metadata_props.add()
    entry.key = RANGES_KEY
    profiles = [(sizes.min, sizes.opt, sizes.max) for sizes in ranges]
    entry.value = json.dumps({"profiles": profiles})
    with refusals_named("write", out):
        onnx.save(model, str(out))


def _factors(path: Path, session: Any) -> list[list[int]]:
    """Of input and output, how many times h or w each side is, by the names of those that vary."""
    shapes = [tensor.shape for tensor in (*session.get_inputs(), *session.get_outputs())]
    matches = [[_SIDE.fullmatch(str(side)) for side in shape] for shape in shapes]
    found = [[int(match[1] or 1) for match in row if match] for row in matches]
    if len({*map(len, shapes), *map(len, found)}) > 1:
        what = f"{path}: sides {shapes[0]} and {shapes[1]}: expected as many, named as h or 8*h"
        raise EngineError(what, fix=f"build it again: {_rebuild(path)} --force")
    return found


def _unused(spec: BuildSpec) -> Iterator[str]:
    if spec.level is not None:
        yield "level not used: onnxruntime has no builder levels"
    if spec.timing_cache is not None:
        yield "timing cache not used: onnxruntime takes no timings while building"


def _rebuild(engine: Path) -> str:
    return rebuild_command(engine, backend=OnnxRuntime.name)


def _read_ranges(engine: Path, session: Any, rank: int) -> tuple[ShapeRange, ...]:
    text = session.get_modelmeta().custom_metadata_map.get(RANGES_KEY)
    if text is None:
        raise ForeignEngineError(
            f"{engine}: an ONNX file without the ranges that `qvae build` writes into it",
            fix=f"build an engine here: {_rebuild(engine)}",
        )
    try:
        held = json.loads(text)["profiles"]
        ranges = tuple(ShapeRange(*(tuple(map(int, s)) for s in r)) for r in held)
        shapes = [s for r in ranges for s in (r.min, r.opt, r.max)]
        if not ranges or any(len(s) != rank or min(s) <= 0 for s in shapes):
            raise ValueError(f"expected at least one, each of {rank} positive sides")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise EngineError(
            f"{engine}: its ranges cannot be read: {error}",
            fix=f"build it again: {_rebuild(engine)} --force",
        ) from error
    return ranges
