"""A TensorRT that runs on the CPU and writes down every call.

    trt = fake_tensorrt.make("8.6")                        # or 10.0, 10.16, 11.4, rtx
    monkeypatch.setitem(sys.modules, "tensorrt", trt)      # rtx: "tensorrt_rtx"
    trt.fake.calls                                         # [Call("IBuilderConfig.set_flag",
    ("FP16",)), ...]

Each variant has the classes, members and attributes of its release and no others: `api/*.txt` lists
them (written by `api/write_api.py`), and what is not listed is taken away, so that an adapter that
uses a missing name fails here as it would there. Enum values are shuffled between variants: nobody
may write them down.

Engines are JSON. They execute on host pointers: `State.compute` maps the input array to the output
array (by default the mean over channels, put into every output channel and resized).

Faults are set on `trt.fake` (see `State`).
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
import threading
import types
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

API = Path(__file__).resolve().parent / "api"
VARIANTS = {
    "8.6": ("8.6.1", "8.6.1.txt"),
    "10.0": ("10.0.1", "10.0.1.txt"),
    "10.16": ("10.16.1.11", "10.16.1.11.txt"),
    "11.4": ("11.4.0.106", "11.4.0.106.txt"),
    "rtx": ("1.7.1.116", "rtx171.txt"),
}
MAGIC = "fake-tensorrt"
_ENUMS = (
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy",
    "HardwareCompatibilityLevel",
    "LayerInformationFormat",
    "LayerType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParserFlag",
    "PreviewFeature",
    "ProfilingVerbosity",
    "TacticSource",
    "TensorIOMode",
    "TensorLocation",
)
# Bit positions that matter because code builds masks of them, as each release has them.
_VALUES = {
    ("8.6", "NetworkDefinitionCreationFlag"): {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
    ("10.0", "NetworkDefinitionCreationFlag"): {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
}
_NUMPY = {"HALF": np.float16, "FLOAT": np.float32, "BF16": np.uint16}


@dataclass(frozen=True)
class Call:
    """One call (or attribute set) on one object: `IBuilderConfig.set_flag`, its arguments, its
    result.
    """

    name: str
    args: tuple[Any, ...] = ()
    result: Any = None
    obj: int = 0
    thread: int = 0


@dataclass
class State:
    """What a test sees and sets.

    Attributes:
        calls: every call, oldest first.
        compute: input array -> output array, both of the engine's dtype.
        scratch_bytes: input shape -> bytes a context needs for it.
        messages: name of a call -> what TensorRT logs as an error when that call fails.
        fail: names of calls that fail: they return False, None or -1, as TensorRT does. A number
            says how often (`{"IExecutionContext.execute_async_v3": 1}`); True always.
        build_steps: steps of the one phase that a build reports to a progress monitor.
        on_step: called with the step's number while a build runs.
        async_streams: if set, `execute_async_v3` puts its work here instead of doing it;
            `run_pending` does it. Shows who does not wait for a stream.
        live: number of engines and contexts not yet freed.
        logger: the last one that was handed over; `logger.log(severity, text)` is TensorRT
            speaking.
    """

    variant: str
    calls: list[Call] = field(default_factory=list)
    compute: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] | None = None
    scratch_bytes: Callable[[tuple[int, ...]], int] = lambda shape: 64 * int(np.prod(shape))
    messages: dict[str, str] = field(default_factory=dict)
    fail: dict[str, int | bool] = field(default_factory=dict)
    build_steps: int = 3
    on_step: Callable[[int], None] | None = None
    live: dict[str, int] = field(default_factory=lambda: {"ICudaEngine": 0, "IExecutionContext": 0})
    async_streams: dict[int, list[Callable[[], None]]] | None = None
    timing_cache: bytes = b"timings"
    logger: Any = None
    lock: Any = field(default_factory=threading.Lock)

    def names(self) -> list[str]:
        return [call.name for call in self.calls]

    def of(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def fails(self, name: str) -> bool:
        left = self.fail.get(name, 0)
        if left is True:
            return True
        if left > 0:
            self.fail[name] = left - 1
            return True
        return False

    def run_pending(self, stream: int) -> None:
        for work in (self.async_streams or {}).pop(stream, []):
            work()


def api_of(variant: str) -> dict[str, set[str]]:
    """Class name -> its public attributes, as that release has them; free names map to an empty
    set.
    """
    found: dict[str, set[str]] = {}
    for line in (API / VARIANTS[variant][1]).read_text().splitlines():
        parts = line.strip().split(".")
        if len(parts) >= 2 and parts[0] == "trt":
            members = found.setdefault(parts[1], set())
            if len(parts) == 3:
                members.add(parts[2])
    return found


def make(variant: str, **settings: Any) -> types.ModuleType:
    """A module that looks like `tensorrt` (or `tensorrt_rtx`) of that release."""
    version, _ = VARIANTS[variant]
    state = State(variant, **settings)
    module = types.ModuleType("tensorrt_rtx" if variant == "rtx" else "tensorrt")
    module.__spec__ = ModuleSpec(module.__name__, None)  # PyTorch's tracing looks for it
    module.__version__ = version  # type: ignore[attr-defined]
    module.fake = state  # type: ignore[attr-defined]
    api = api_of(variant)
    for name in _ENUMS:
        if name in api:
            setattr(module, name, _make_enum(variant, name, api[name]))
    for cls in _make_classes(module, state):
        if cls.__name__ in api:
            _strip(cls, api[cls.__name__])
            setattr(module, cls.__name__, cls)
    return module


@contextmanager
def installed(variant: str, **settings: Any) -> Any:
    """`with installed("8.6") as trt:` puts the fake where `import tensorrt` finds it."""
    module = make(variant, **settings)
    before = sys.modules.get(module.__name__)
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before


def write_package(folder: Path, variant: str, *, after: str = "") -> Path:
    """A folder for PYTHONPATH in which `import tensorrt` is the fake, for a test's processes.

    `after` is Python run at the end, with `trt` in scope (`trt.fake.fail[...] = True`).
    """
    name = "tensorrt_rtx" if variant == "rtx" else "tensorrt"
    package = folder / name
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        f"import sys\nsys.path.append({str(API.parent)!r})\nimport fake_tensorrt\n"
        f"trt = fake_tensorrt.make({variant!r})\nsys.modules[{name!r}] = trt\n{after}\n"
    )
    return folder


def plan(
    variant: str,
    *,
    name: str = "latents",
    shape: tuple[int, ...] = (1, 16, 1, -1, -1),
    ranges: tuple[tuple[tuple[int, ...], ...], ...] = (),
    out_name: str = "images",
    out_shape: tuple[int, ...] = (1, 3, 1, -1, -1),
    dtype: str = "HALF",
    version: str | None = None,
) -> bytes:
    """The bytes of an engine that `Runtime.deserialize_cuda_engine` of the same variant takes."""
    return json.dumps(
        {
            "magic": MAGIC,
            "version": version or VARIANTS[variant][0],
            "input": [name, dtype, list(shape)],
            "output": [out_name, dtype, list(out_shape)],
            "ranges": [[list(s) for s in r] for r in ranges],
            "layers": ["conv"],
        }
    ).encode()


# --- making classes -----------------------------------------------------------------------------


def _make_enum(variant: str, name: str, members: set[str]) -> type[enum.IntEnum]:
    names = sorted(members - {"name", "value"})
    values = _VALUES.get((variant, name))
    if values is None:
        if name == "NetworkDefinitionCreationFlag":
            first = ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
            names.sort(key=lambda n: (first.index(n) if n in first else 9, n))
            shift = 0
        else:
            shift = list(VARIANTS).index(variant)
        values = {n: (i + shift) % len(names) for i, n in enumerate(names)}
    return enum.IntEnum(name, values)


def _strip(cls: type, allowed: set[str]) -> None:
    """Takes away every public attribute that this release's class does not have."""
    cls._allowed = allowed  # type: ignore[attr-defined]
    for name in [n for n in vars(cls) if not n.startswith("_") and n not in allowed]:
        delattr(cls, name)


class _Recorded:
    """Records calls and attribute writes; forbids unknown attributes, as bound classes do."""

    _state: State
    _allowed: set[str]

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.startswith("_") or not isinstance(value, types.MethodType):
            return value
        label = f"{_bound_name(type(self))}.{name}"
        state: State = super().__getattribute__("_state")

        def call(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            if state.fails(label):
                result = _failure(state, self, label)
            else:
                result = value(*args, **kwargs)
            shown = tuple(a.name if isinstance(a, enum.Enum) else a for a in given)
            kept = result if isinstance(result, (bool, int, tuple, type(None))) else None
            with state.lock:
                state.calls.append(Call(label, shown, kept, id(self), threading.get_ident()))
            return result

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if name not in type(self)._allowed:
                raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
            shown = value.name if isinstance(value, enum.Enum) else value
            label = f"{_bound_name(type(self))}.{name}"
            with self._state.lock:
                self._state.calls.append(Call(label, (shown,), None, id(self)))
        super().__setattr__(name, value)


def _bound_name(cls: type) -> str:
    return next(c.__name__ for c in cls.__mro__ if c.__module__ == __name__)


def _failure(state: State, obj: Any, label: str) -> Any:
    text = state.messages.get(label)
    if text is not None:
        obj._say(text)
    if label.endswith("add_optimization_profile"):
        return -1
    makes = ("build_serialized_network", "deserialize_cuda_engine")
    return None if label.endswith(makes) or ".create_" in label else False


def _make_classes(trt: Any, state: State) -> list[type]:
    version = VARIANTS[state.variant][0]

    class Severity(enum.IntEnum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    class ILogger:
        def __init__(self) -> None:
            self._ready = True

        def log(self, severity: Any, msg: str) -> None:
            raise NotImplementedError

    ILogger.Severity = Severity  # type: ignore[attr-defined]
    for level in Severity:
        setattr(ILogger, level.name, level)

    class Logger(ILogger):
        def __init__(self, min_severity: Any = Severity.WARNING) -> None:
            super().__init__()
            self.min_severity = min_severity

        def log(self, severity: Any, msg: str) -> None:
            pass

    class IProgressMonitor:
        def __init__(self) -> None:
            self._ready = True

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None: ...

    class _Base(_Recorded):
        _state = state
        _logger: Any = None

        def _say(self, text: str, severity: Any = Severity.ERROR) -> None:
            if self._logger is not None:
                self._logger.log(severity, text)

    def check_logger(logger: Any) -> Any:
        # A subclass that forgets ILogger.__init__ crashes the real bindings.
        if not isinstance(logger, ILogger) or not getattr(logger, "_ready", False):
            raise TypeError("expected an initialised ILogger")
        state.logger = logger
        return logger

    class IHostMemory(_Base):
        def __init__(self, data: bytes) -> None:
            self._data = data
            self._view = memoryview(data)

        @property
        def nbytes(self) -> int:
            return len(self._data)

    class ITimingCache(_Base):
        def __init__(self, data: bytes) -> None:
            self._data = data

        def serialize(self) -> Any:
            return bytearray(self._data or state.timing_cache)

        def combine(self, other: Any, ignore_mismatch: bool) -> bool:
            return True

        def reset(self) -> bool:
            self._data = b""
            return True

    class ITensor(_Base):
        def __init__(self, name: str, dtype: Any, shape: tuple[int, ...], is_shape: bool) -> None:
            self._name, self._dtype, self._shape, self._is_shape = name, dtype, shape, is_shape

        name = property(lambda self: self._name)
        dtype = property(lambda self: self._dtype)
        shape = property(lambda self: self._shape)
        is_shape_tensor = property(lambda self: self._is_shape)
        is_execution_tensor = property(lambda self: not self._is_shape)
        is_network_input = property(lambda self: False)
        is_network_output = property(lambda self: False)

    class ILayer(_Base):
        def __init__(self, name: str, kind: Any, inputs: list[Any], outputs: list[Any]) -> None:
            self._name, self._kind = name, kind
            self._inputs, self._outputs = inputs, outputs
            self._precision: Any = None
            self._types: dict[int, Any] = {}

        name = property(lambda self: self._name)
        type = property(lambda self: self._kind)
        num_outputs = property(lambda self: len(self._outputs))
        num_inputs = property(lambda self: len(self._inputs))

        @property
        def precision(self) -> Any:
            return self._precision

        @precision.setter
        def precision(self, value: Any) -> None:
            self._precision = value

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

        def set_output_type(self, index: int, dtype: Any) -> None:
            self._types[index] = dtype

        def get_output_type(self, index: int) -> Any:
            return self._types.get(index, self._outputs[index].dtype)

        def output_type_is_set(self, index: int) -> bool:
            return index in self._types

        @property
        def precision_is_set(self) -> bool:
            return self._precision is not None

    class INetworkDefinition(_Base):
        def __init__(self, logger: Any, mask: int) -> None:
            self._logger, self._mask = logger, mask
            self._inputs: list[Any] = []
            self._outputs: list[Any] = []
            self._layers: list[Any] = []

        num_inputs = property(lambda self: len(self._inputs))
        num_outputs = property(lambda self: len(self._outputs))
        num_layers = property(lambda self: len(self._layers))

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

    class ParserError(_Base):
        def __init__(self, text: str, node: int) -> None:
            self._text, self._node = text, node

        def desc(self) -> str:
            return self._text

        def node(self) -> int:
            return self._node

    class OnnxParser(_Base):
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._logger = network, check_logger(logger)
            self._errors: list[Any] = []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def clear_errors(self) -> None:
            self._errors.clear()

        def parse_from_file(self, model: str) -> bool:
            import onnx

            try:
                loaded = onnx.shape_inference.infer_shapes(onnx.load(model))
            except Exception as error:  # noqa: BLE001  a broken file, whatever onnx calls it
                self._errors.append(ParserError(f"cannot be read: {type(error).__name__}", -1))
                return False
            if not loaded.graph.node:
                self._errors.append(ParserError("no nodes", -1))
                return False
            _fill(trt, self._network, loaded, ITensor, ILayer)
            return True

    class IOptimizationProfile(_Base):
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:  # noqa: A002
            shapes = (tuple(min), tuple(opt), tuple(max))
            bad = any(not a <= b <= c for a, b, c in zip(*shapes, strict=True))
            if bad and state.variant != "rtx":  # RTX does not raise
                raise ValueError("Shape provided for min/opt/max is inconsistent with other shapes")
            self._shapes[input] = shapes

        def get_shape(self, input: str) -> list[Any]:  # noqa: A002
            return list(self._shapes[input])

        def __bool__(self) -> bool:
            return bool(self._shapes)

    class IBuilderConfig(_Base):
        builder_optimization_level: Any = 3
        profiling_verbosity: Any = None
        progress_monitor: Any = None
        hardware_compatibility_level: Any = None
        max_aux_streams: Any = 0
        num_compute_capabilities: Any = 0

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self._flags: set[str] = {"TF32"}
            self._profiles: list[Any] = []
            self._cache: Any = None
            self._tactics = -1
            self._previews: dict[str, bool] = {}

        num_optimization_profiles = property(lambda self: len(self._profiles))

        def set_flag(self, flag: Any) -> None:
            self._flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            self._flags.discard(flag.name)

        def get_flag(self, flag: Any) -> bool:
            return flag.name in self._flags

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            self._previews[feature.name] = enable

        def set_tactic_sources(self, tactic_sources: int) -> bool:
            self._tactics = tactic_sources
            return True

        def get_tactic_sources(self) -> int:
            return self._tactics

        def add_optimization_profile(self, profile: Any) -> int:
            for low, opt, high in profile._shapes.values():
                if any(not a <= b <= c for a, b, c in zip(low, opt, high, strict=True)):
                    return -1
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
            return ITimingCache(bytes(serialized_timing_cache))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
            return True

    class Builder(_Base):
        def __init__(self, logger: Any) -> None:
            self._logger = check_logger(logger)
            state.calls.append(Call("Builder", (), None, id(self)))
            if state.fails("Builder"):
                self._say(state.messages.get("Builder", "CUDA initialization failure: 35"))
                raise TypeError("pybind11::init(): factory function returned nullptr")

        platform_has_fast_fp16 = property(lambda self: True)

        def create_network(self, flags: int = 0) -> Any:
            known = trt.NetworkDefinitionCreationFlag
            if flags >> len(known):
                self._say(f"unknown network flags {flags}")
                return None
            if state.variant == "8.6" and not flags & (1 << int(known.EXPLICIT_BATCH)):
                self._say("implicit batch is not for ONNX")
            return INetworkDefinition(self._logger, flags)

        def create_builder_config(self) -> Any:
            return IBuilderConfig(self._logger)

        def create_optimization_profile(self) -> Any:
            return IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
            is_typed = typed is not None and bool(network._mask >> int(typed) & 1)
            if is_typed and {"FP16", "BF16"} & config._flags:
                self._say("strongly typed networks take no precision flags")
                return None
            if not _report(self, config):
                return None
            source, result = network._inputs[0], network._outputs[0]
            if -1 in source.shape and not config._profiles:
                self._say("Network has dynamic inputs, but no optimization profile")
                return None
            ranges = [p._shapes[source.name] for p in config._profiles]
            data = {
                "magic": MAGIC,
                "version": version,
                "input": [source.name, source.dtype.name, list(source.shape)],
                "output": [result.name, result.dtype.name, list(result.shape)],
                "ranges": [[list(s) for s in r] for r in ranges],
                "layers": [layer._name for layer in network._layers],
                "types": {
                    tensor._name: layer._types[index].name
                    for layer in network._layers
                    for index, tensor in enumerate(layer._outputs)
                    if index in layer._types and layer._precision == layer._types[index]
                },
            }
            return _as_buffer(json.dumps(data).encode())

    def _report(builder: Any, config: Any) -> bool:
        monitor = getattr(config, "progress_monitor", None)
        if monitor is not None:
            monitor.phase_start("Building engine", None, state.build_steps)
        going = True
        for step in range(state.build_steps):
            if state.on_step is not None:
                state.on_step(step)
            if monitor is not None and not monitor.step_complete("Building engine", step):
                builder._say("build cancelled by the progress monitor")
                going = False
                break
        if monitor is not None:
            monitor.phase_finish("Building engine")
        return going

    class EngineInspector(_Base):
        def __init__(self, data: dict[str, Any]) -> None:
            self._data = data

        def get_engine_information(self, format: Any) -> str:  # noqa: A002
            return json.dumps({"Layers": self._data["layers"], "Bindings": []})

    class ICudaEngine(_Base):
        def __init__(self, data: dict[str, Any], logger: Any) -> None:
            self._data, self._logger = data, logger
            self._has_context = False
            state.live["ICudaEngine"] += 1

        def __del__(self) -> None:
            state.live["ICudaEngine"] -= 1

        num_io_tensors = property(lambda self: 2)
        num_layers = property(lambda self: len(self._data["layers"]))
        num_optimization_profiles = property(lambda self: max(1, len(self._data["ranges"])))

        def _tensor(self, name: str) -> tuple[str, str, list[int]]:
            for key in ("input", "output"):
                if self._data[key][0] == name:
                    return key, self._data[key][1], self._data[key][2]
            raise KeyError(name)

        def get_tensor_name(self, index: int) -> str:
            return self._data["input" if index == 0 else "output"][0]

        def get_tensor_mode(self, name: str) -> Any:
            return getattr(trt.TensorIOMode, self._tensor(name)[0].upper())

        def get_tensor_dtype(self, name: str) -> Any:
            return getattr(trt.DataType, self._tensor(name)[1])

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(self._tensor(name)[2])

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
            ranges = self._data["ranges"] or [[self._data["input"][2]] * 3]
            return [tuple(s) for s in ranges[profile_index]]

        def _largest(self, index: int) -> int:
            return state.scratch_bytes(self.get_tensor_profile_shape("", index)[2])

        @property
        def device_memory_size(self) -> int:
            return max(self._largest(i) for i in range(self.num_optimization_profiles))

        @property
        def device_memory_size_v2(self) -> int:
            return max(self._largest(i) for i in range(self.num_optimization_profiles))

        def get_device_memory_size_for_profile(self, profile_index: int) -> int:
            return self._largest(profile_index)

        def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
            return self._largest(profile_index)

        def create_execution_context_without_device_memory(self) -> Any:
            return IExecutionContext(self, self._logger, owns=False)

        def create_execution_context(self, strategy: Any = None) -> Any:
            name = getattr(strategy, "name", "STATIC")
            return IExecutionContext(self, self._logger, owns=name != "USER_MANAGED")

        def create_engine_inspector(self) -> Any:
            return EngineInspector(self._data)

    class IExecutionContext(_Base):
        device_memory: Any = None
        error_recorder: Any = None
        nvtx_verbosity: Any = None

        def __init__(self, engine: Any, logger: Any, *, owns: bool) -> None:
            self._engine, self._logger, self._owns = engine, logger, owns
            # The first context has profile 0; a later one must be given one of its own.
            self._profile, self._shape = (-1 if engine._has_context else 0), None
            engine._has_context = True
            self._addresses: dict[str, int] = {}
            self._memory: tuple[int, int] | None = None
            self._updated = False
            state.live["IExecutionContext"] += 1
            if -1 not in engine._data["input"][2]:
                self._shape = tuple(engine._data["input"][2])

        def __del__(self) -> None:
            state.live["IExecutionContext"] -= 1

        engine = property(lambda self: self._engine)
        active_optimization_profile = property(lambda self: self._profile)

        def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
            if not 0 <= profile_index < self._engine.num_optimization_profiles:
                self._say(f"profile {profile_index} does not exist")
                return False
            self._profile, self._shape, self._updated = profile_index, None, False
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
            if any(not a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
                self._say(f"Static dimension mismatch while setting input shape {tuple(shape)}")
                return False
            self._shape, self._updated = tuple(shape), False
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            key, _, shape = self._engine._tensor(name)
            if key == "input":
                return self._shape or tuple(shape)
            if -1 not in shape:
                return tuple(shape)
            if self._shape is None:
                return tuple(shape)
            grows = self._engine._data["input"][0] == "latents"
            sides = [s * 8 if grows else s // 8 for s in self._shape[3:]]
            return (*shape[:3], *sides)

        def infer_shapes(self) -> list[str]:
            return []

        def update_device_memory_size_for_shapes(self) -> int:
            assert self._shape is not None, "shapes come first"
            self._updated = True
            return state.scratch_bytes(self._shape)

        def set_device_memory(self, memory: int, size: int) -> None:
            self._memory = (memory, size)

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._engine._tensor(name)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            if self._shape is None:
                self._say("not all input dimensions specified")
                return False
            given = self._memory[0] if self._memory else self.device_memory
            if not self._owns and not given:
                self._say("no device memory given to a context that owns none")
                return False
            if self._memory and self._updated:
                assert self._memory[1] >= state.scratch_bytes(self._shape), "scratch too small"
            source, result = self._engine._data["input"], self._engine._data["output"]
            shape, out = self._shape, self.get_tensor_shape(result[0])
            pointers = (self._addresses[source[0]], self._addresses[result[0]])
            compute = state.compute or _mean_of_channels

            def work() -> None:
                x = _array(pointers[0], _NUMPY[source[1]], shape)
                _array(pointers[1], _NUMPY[result[1]], out)[...] = compute(x, out)

            if state.async_streams is None:
                work()
            else:
                state.async_streams.setdefault(stream_handle, []).append(work)
            return True

    class Runtime(_Base):
        engine_host_code_allowed: Any = False
        max_threads: Any = 0

        def __init__(self, logger: Any) -> None:
            self._logger = check_logger(logger)
            state.calls.append(Call("Runtime", (), None, id(self)))
            if state.fails("Runtime"):
                self._say(state.messages.get("Runtime", "CUDA initialization failure: 35"))
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            try:
                data = json.loads(bytes(serialized_engine))
                if data["magic"] != MAGIC:
                    raise ValueError
            except (ValueError, KeyError, TypeError):
                self._say("Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None
            if data["version"] != version:
                self._say(
                    "The engine plan file is not compatible with this version of TensorRT, "
                    f"expecting library version {version} got {data['version']}"
                )
                return None
            return ICudaEngine(data, self._logger)

        def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
            return (trt.EngineValidity.VALID, 0)

    return [
        ILogger,
        Logger,
        IProgressMonitor,
        IHostMemory,
        ITimingCache,
        ITensor,
        ILayer,
        INetworkDefinition,
        ParserError,
        OnnxParser,
        IOptimizationProfile,
        IBuilderConfig,
        Builder,
        EngineInspector,
        ICudaEngine,
        IExecutionContext,
        Runtime,
    ]


# --- what the classes do ------------------------------------------------------------------------

_ELEMS = {1: "FLOAT", 10: "HALF", 16: "BF16", 7: "INT64", 6: "INT32", 9: "BOOL"}
_LAYERS = {
    "Conv": "CONVOLUTION",
    "ConvTranspose": "DECONVOLUTION",
    "Cast": "CAST",
    "Resize": "RESIZE",
    "Shape": "SHAPE",
    "MatMul": "MATRIX_MULTIPLY",
    "Softmax": "SOFTMAX",
    "Sigmoid": "ACTIVATION",
    "Mul": "ELEMENTWISE",
    "Add": "ELEMENTWISE",
    "Sub": "ELEMENTWISE",
    "Div": "ELEMENTWISE",
    "Gather": "GATHER",
    "Concat": "CONCATENATION",
    "Slice": "SLICE",
    "ReduceSum": "REDUCE",
}


def _fill(trt: Any, network: Any, model: Any, tensor: type, layer: type) -> None:
    """Inputs, outputs and one layer a node, with the types that ONNX infers.

    As the parser of 8.6 does, weights that are added or multiplied become layers of their own,
    those of fewer dimensions with an unnamed reshape behind; and its tensors inside are all float.
    """
    dims: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type
        kinds[value.name] = _ELEMS.get(kind.elem_type, "FLOAT")
        dims[value.name] = tuple(d.dim_value or -1 for d in kind.shape.dim)
    weights = {init.name: init for init in graph.initializer}
    for name, init in weights.items():
        kinds[name], dims[name] = _ELEMS.get(init.data_type, "FLOAT"), tuple(init.dims)
    ends = {value.name for value in (*graph.input, *graph.output)}
    is_weak = not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    made: dict[str, Any] = {}

    def make_tensor(name: str, like: str | None = None) -> Any:
        kind, shape = (kinds.get(like or name, "FLOAT"), dims.get(like or name, ()))
        if kind == "INT64" and not hasattr(trt.DataType, "INT64"):
            kind = "INT32"
        if kind == "HALF" and is_weak and name not in ends:
            kind = "FLOAT"
        is_shape = kind.startswith("INT") and len(shape) <= 1
        made[name] = tensor(name, getattr(trt.DataType, kind), shape, is_shape)
        return made[name]

    def add(name: str, kind: str, inputs: list[Any], outputs: list[Any]) -> None:
        network._layers.append(layer(name, getattr(trt.LayerType, kind), inputs, outputs))

    def weight(name: str, rank: int) -> Any:
        constant = make_tensor(f"{name}_output", like=name)
        add(name, "CONSTANT", [], [constant])
        if len(dims[name]) >= rank:
            return constant
        unnamed = f"(Unnamed Layer* {len(network._layers)}) [Shuffle]"
        reshaped = make_tensor(f"{unnamed}_output", like=name)
        add(unnamed, "SHUFFLE", [constant], [reshaped])
        return reshaped

    network._inputs = [make_tensor(v.name) for v in graph.input if v.name not in weights]
    for number, node in enumerate(graph.node):
        kind = _LAYERS.get(node.op_type, "SHUFFLE")
        inputs = [made[name] for name in node.input if name in made]
        if kind == "ELEMENTWISE":
            rank = max(len(dims.get(name, ())) for name in node.input)
            inputs = [made.get(name) or weight(name, rank) for name in node.input]
        outputs = [make_tensor(name) for name in node.output if name]
        add(node.name or f"{node.op_type}_{number}", kind, inputs, outputs)
    network._outputs = [made[v.name] for v in graph.output]


def _as_buffer(data: bytes) -> Any:
    """What IHostMemory is to Python: an object with a buffer and `nbytes`."""
    return memoryview(data)


def _array(pointer: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    raw = (ctypes.c_char * (count * np.dtype(kind).itemsize)).from_address(pointer)
    return np.frombuffer(raw, dtype=kind, count=count).reshape(shape)


def _mean_of_channels(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    mean = x.astype(np.float32).mean(axis=1)[0, 0]
    rows = np.arange(shape[3]) * mean.shape[0] // shape[3]
    columns = np.arange(shape[4]) * mean.shape[1] // shape[4]
    return np.broadcast_to(mean[np.ix_(rows, columns)], shape).astype(x.dtype)
