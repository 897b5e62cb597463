"""ONNX -> TensorRT plan, for 8.6, 10, 11 and RTX; their differences are looked up by name.

One of them: with `STRONGLY_TYPED` absent (8.6) the graph's own types are set on every layer,
since that TensorRT otherwise takes them as a suggestion.
"""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qvae_trt.backends.protocol import BuildOutcome, BuildSpec
from qvae_trt.backends.trt_session import DTYPE_NAMES, Log, Messages
from qvae_trt.errors import BackendError, BuildError, QvaeError, StoreError
from qvae_trt.files.reading import read_bytes
from qvae_trt.files.writing import refusals_named, replace_file
from qvae_trt.progress import Progress
from qvae_trt.tensors import DTypeName, TensorSpec

_log = logging.getLogger(__name__)
_STEPS = 1000  # of a whole build, as progress is told
# Libraries that 8.6 takes tactics from, and a symbol that an empty stand-in for one lacks.
TACTIC_LIBRARIES = {
    "CUBLAS": ("libcublas.so.12", "libcublas.so.11", "cublasCreate_v2"),
    "CUBLAS_LT": ("libcublasLt.so.12", "libcublasLt.so.11", "cublasLtCreate"),
    "CUDNN": ("libcudnn.so.8", "libcudnn.so.8", "cudnnCreate"),
}
# The timings of what this process has built, by what they hold for. An encoder and a decoder have
# most shapes of convolutions in common.
_timings: dict[Path, bytes] = {}
_PREVIEW_FEATURES = {
    # From 10.10: an engine then tells the scratch of the very shape; else that may be its largest.
    "RUNTIME_ACTIVATION_RESIZE_10_10": True,
    # 8.6 has it on, which gives dynamic graphs to its compiler: builds take longer, and of the
    # static graph's attention that compiler made 16.9 ms of 5. Unmeasured with ranges.
    "FASTER_DYNAMIC_SHAPES_0805": False,
}


class PlanBuilder:
    """One build of one engine."""

    def __init__(
        self,
        trt: Any,
        log: Log,
        *,
        flavour: str,
        gpu: str,
        spec: BuildSpec,
        progress: Progress,
    ) -> None:
        self._trt, self._log = trt, log
        self._flavour, self._gpu, self._spec = flavour, gpu, spec
        self._progress = progress
        self._flags: dict[str, str] = {}
        self._warnings: list[str] = []

    def build(self, onnx: Path, out: Path) -> BuildOutcome:
        """Parses `onnx`, builds, writes the plan to `out`.

        Raises: BackendError (TensorRT does not start), BuildError, DeviceMemoryError, StoreError.
        """
        cache = self._read_cache()
        tensors, plan = self._plan(onnx, cache)
        with refusals_named("write", out):
            out.write_bytes(plan)
        return BuildOutcome(
            flags=dict(self._flags),
            input=tensors[0],
            output=tensors[1],
            warnings=tuple(self._warnings),
        )

    def _plan(self, onnx: Path, cache: bytes | None) -> tuple[tuple[TensorSpec, TensorSpec], bytes]:
        tensors, plan = self._attempt(onnx, cache)
        if isinstance(plan, BuildError) and cache:
            # Seen on 8.6: a cache that its own build wrote makes the next one fail inside Myelin.
            self._warn(f"timing cache refused, built again without it: {plan.what}")
            tensors, plan = self._attempt(onnx, b"")
        if isinstance(plan, QvaeError):
            raise plan
        return tensors, plan

    def _attempt(
        self, onnx: Path, cache: bytes | None
    ) -> tuple[tuple[TensorSpec, TensorSpec], bytes | QvaeError]:
        """The plan, or why TensorRT made none of a graph and settings that it had taken."""
        self._flags = {"level": "default" if self._spec.level is None else str(self._spec.level)}
        with self._log.listen(all_threads=True) as heard:
            builder = self._start(heard)
            network = self._create_network(builder, heard)
            tensors = self._parse(network, onnx, heard)
            config = self._configure(builder, tensors[0], heard)
            attached = cache is not None and self._attach_cache(config, cache)
            monitor, adapter = Monitor(self._progress), None
            if hasattr(self._trt, "IProgressMonitor"):
                adapter = config.progress_monitor = monitor.adapter(self._trt)
            self._progress("build", 0, _STEPS)
            plan = builder.build_serialized_network(network, config)
            del adapter
            monitor.reraise()
            if plan is None:
                what = f"TensorRT built no engine of {onnx.name}"
                return tensors, heard.explain(BuildError, what)
            if attached:
                self._keep_cache(config)
        self._progress("build", _STEPS, _STEPS)
        for text in heard.warnings:
            _log.info("TensorRT: %s", text)
        return tensors, bytes(memoryview(plan))

    # --- network --------------------------------------------------------------------------------

    def _start(self, heard: Messages) -> Any:
        try:
            return self._trt.Builder(self._log.sink)
        except (TypeError, RuntimeError) as error:  # pybind: the factory returned nothing
            raise heard.explain(
                BackendError, f"TensorRT's builder does not start ({error})", fix="qvae doctor"
            ) from error

    def _create_network(self, builder: Any, heard: Messages) -> Any:
        flag = self._trt.NetworkDefinitionCreationFlag
        strong = getattr(flag, "STRONGLY_TYPED", None)
        self._flags["typing"] = "strong" if strong is not None else "constrained"
        bit = flag.EXPLICIT_BATCH if strong is None else strong
        network = builder.create_network(1 << int(bit))
        if network is None:
            raise heard.explain(BuildError, f"TensorRT made no network with {bit.name}")
        return network

    def _parse(self, network: Any, onnx: Path, heard: Messages) -> tuple[TensorSpec, TensorSpec]:
        self._progress("parse", 0, _STEPS)
        parser = self._trt.OnnxParser(network, self._log.sink)
        if not parser.parse_from_file(str(onnx)):
            found = [parser.get_error(index) for index in range(parser.num_errors)]
            said = "; ".join(f"node {error.node()}: {error.desc()}" for error in found[:3])
            raise heard.explain(
                BuildError, f"TensorRT does not take {onnx.name} ({said or 'no reason given'})"
            )
        counts = network.num_inputs, network.num_outputs
        if counts != (1, 1):  # RTX takes an empty file
            raise BuildError(f"{onnx.name}: {counts} inputs and outputs, expected one of each")
        source, result = _spec_of(network.get_input(0)), _spec_of(network.get_output(0))
        if self._flags["typing"] == "constrained" and self._spec.precision == "fp16":
            fixed = _constrain(self._trt, network, _types_in(onnx))
            self._flags["constrained_layers"] = str(sum(fixed.values()))
            self._flags["fp32_layers"] = str(fixed["float32"])
        return source, result

    # --- config ---------------------------------------------------------------------------------

    def _configure(self, builder: Any, source: TensorSpec, heard: Messages) -> Any:
        trt, spec = self._trt, self._spec
        config = builder.create_builder_config()
        if config is None:
            raise heard.explain(BuildError, "TensorRT made no builder configuration")
        if self._flags["typing"] == "constrained" and spec.precision == "fp16":
            self._set_flags(config, "FP16", "OBEY_PRECISION_CONSTRAINTS")
        if spec.precision == "fp32":
            # With TF32 an fp32 engine multiplies with 10 bits of mantissa, as few as fp16.
            config.clear_flag(trt.BuilderFlag.TF32)
            self._flags["tf32"] = "off"
        if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # RTX: else no CUDA graph capture
            self._set_flags(config, "REQUIRE_USER_ALLOCATION")
        verbosity = getattr(trt.ProfilingVerbosity, "DETAILED", None)
        if verbosity is not None:  # so that `qvae inspect` can name layers and tactics
            config.profiling_verbosity = verbosity
        if spec.level is not None:
            config.builder_optimization_level = spec.level
            if config.builder_optimization_level != spec.level:
                raise heard.explain(BuildError, f"TensorRT refused the level {spec.level}")
        self._limit_tactics(config)
        self._set_preview_features(config)
        self._add_profiles(builder, config, source, heard)
        return config

    def _set_flags(self, config: Any, *names: str) -> None:
        for name in names:
            config.set_flag(getattr(self._trt.BuilderFlag, name))
        held = self._flags.get("builder_flags", "").split()
        self._flags["builder_flags"] = " ".join([*held, *names])

    def _set_preview_features(self, config: Any) -> None:
        """For engines with ranges, what is not right for them by default; others have no need."""
        known = getattr(self._trt, "PreviewFeature", None)
        if all(sizes.is_fixed for sizes in self._spec.ranges):
            return
        for name, on in _PREVIEW_FEATURES.items():
            feature = getattr(known, name, None)
            if feature is not None:
                config.set_preview_feature(feature, on)
                self._flags[name.lower()] = "on" if on else "off"

    def _limit_tactics(self, config: Any) -> None:
        """Takes only tactics whose libraries are here. 8.6 asks cuBLAS and cuDNN; later ones do
        not.
        """
        if self._flags["typing"] == "strong":
            return
        source = self._trt.TacticSource
        known = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS", *TACTIC_LIBRARIES)
        names = [name for name in known if hasattr(source, name) and has_library(name)]
        if not config.set_tactic_sources(sum(1 << int(getattr(source, name)) for name in names)):
            raise BuildError(f"TensorRT refused the tactic sources {' '.join(names)}")
        self._flags["tactic_sources"] = " ".join(names)

    def _add_profiles(self, builder: Any, config: Any, source: TensorSpec, heard: Messages) -> None:
        if -1 not in source.shape:
            self._flags["profiles"] = "0"
            return
        for index, sizes in enumerate(self._spec.ranges):
            profile = builder.create_optimization_profile()
            try:
                profile.set_shape(source.name, sizes.min, sizes.opt, sizes.max)
            except ValueError as error:
                raise heard.explain(
                    BuildError, f"TensorRT refused profile {index}, {sizes}: {error}"
                ) from error
            added = config.add_optimization_profile(profile) if profile else -1
            if added != index:
                raise heard.explain(
                    BuildError, f"TensorRT refused profile {index} (index {added}): {sizes}"
                )
        self._flags["profiles"] = str(len(self._spec.ranges))

    # --- timing cache ---------------------------------------------------------------------------

    def _read_cache(self) -> bytes | None:
        """What the file or this process holds; empty if nothing yet; None where no cache is to be
        used.
        """
        if self._flavour == "tensorrt_rtx":
            if self._spec.timing_cache is not None:
                self._warn("timing cache not used: TensorRT-RTX takes no timings while building")
            return None
        path = self._cache_path()
        if self._spec.timing_cache is None:
            return _timings.get(path, b"")
        try:
            return read_bytes(path, fault=StoreError, most_bytes=None)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                self._warn(f"timing cache not read: {error.what}")
            return b""

    def _cache_path(self) -> Path:
        known = {"version": self._trt.__version__, "precision": self._spec.precision}
        base = self._spec.timing_cache or Path("timings")
        return timing_cache_path(base, gpu=self._gpu, **known)

    def _attach_cache(self, config: Any, stored: bytes) -> bool:
        """Whether TensorRT took a timing cache: the one of the file, or a new one."""
        for data in dict.fromkeys((stored, b"")):
            cache = _create_cache(config, data)
            if cache is not None and config.set_timing_cache(cache, False):
                self._flags["timing_cache"] = f"{len(data)} bytes read"
                return True
            if data:
                self._warn("timing cache refused by TensorRT, started a new one")
        self._warn("TensorRT took no timing cache, built without one")
        return False

    def _keep_cache(self, config: Any) -> None:
        cache = config.get_timing_cache()
        timings = None if cache is None else cache.serialize()
        if timings is None:
            self._warn("TensorRT gave no timing cache back")
            return
        if self._spec.timing_cache is None:
            _timings[self._cache_path()] = bytes(memoryview(timings))
            return
        try:
            with replace_file(self._cache_path()) as temporary:
                temporary.write_bytes(memoryview(timings))
        except StoreError as error:
            self._warn(f"timing cache not kept: {error.what}")

    def _warn(self, text: str) -> None:
        _log.warning("%s", text)
        self._warnings.append(text)


class Monitor:
    """TensorRT's nested phases as one bar. An exception in the callback stops the build and is
    raised after it.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._lock = threading.Lock()  # builders report from threads of their own
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # name: parent, done, steps
        self._shown = 0
        self._stopped_by: BaseException | None = None

    def adapter(self, trt: Any) -> Any:
        """For the builder's configuration, which does not keep it alive."""
        calls: dict[str, Any] = {
            "__init__": lambda adapter: trt.IProgressMonitor.__init__(adapter),
            "phase_start": lambda _, name, parent, steps: self.start(name, parent, steps),
            "step_complete": lambda _, name, index: self.step(name, index + 1),
            "phase_finish": lambda _, name: self.finish(name),
        }
        return type("Adapter", (trt.IProgressMonitor,), calls)()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (parent, 0, max(1, steps))
        self._tell(name)

    def step(self, name: str, done: int) -> bool:
        with self._lock:
            parent, _, steps = self._phases.get(name, (None, 0, max(1, done)))
            self._phases[name] = (parent, done, steps)
        return self._tell(name)

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _tell(self, name: str) -> bool:
        with self._lock:
            fraction = 0.0
            phase: str | None = name
            for _ in range(len(self._phases)):  # at most so many stand above each other
                if phase in self._phases:
                    phase, done, steps = self._phases[phase]
                    fraction = min(1.0, (done + fraction) / steps)
            self._shown = shown = max(self._shown, int(_STEPS * fraction))
        if self._stopped_by is None:
            try:
                self._progress(name, shown, _STEPS)
            except BaseException as error:  # noqa: BLE001  not into C++; reraise() raises it
                self._stopped_by = error
        return self._stopped_by is None

    def reraise(self) -> None:
        if self._stopped_by is not None:
            raise self._stopped_by


def timing_cache_path(base: Path, *, gpu: str, version: str, precision: str) -> Path:
    """`c.timing` -> `c-NVIDIA_H200-8.6.1-fp16.timing`: timings hold for one GPU, TensorRT and
    precision only.
    """
    key = re.sub(r"[^A-Za-z0-9.]+", "_", gpu).strip("_")
    return base.with_name(f"{base.stem}-{key}-{version}-{precision}{base.suffix}")


def _create_cache(config: Any, held: bytes) -> Any:
    try:
        return config.create_timing_cache(held)
    except (RuntimeError, TypeError, ValueError):  # a file that is no timing cache
        return None


def _spec_of(tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, DTYPE_NAMES[tensor.dtype.name], tuple(tensor.shape))


def _types_in(graph: Path) -> dict[str, DTypeName]:
    """The float tensors of an ONNX graph with their types, weights aside."""
    import onnx

    proto = onnx.TensorProto
    names: dict[int, DTypeName] = {proto.FLOAT16: "float16", proto.FLOAT: "float32"}
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(graph))).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return {name: names[kind] for name, kind in kinds.items() if kind in names}


def _constrain(trt: Any, network: Any, types: Mapping[str, DTypeName]) -> Counter[DTypeName]:
    """Fixes every float layer at its type in the graph, and counts them by type.

    Unconstrained, 8.6 times each layer in fp32 as well: five times the build for a slower engine.
    The types that its parser reports are no guide: it calls half of an fp16 graph's tensors float.
    It keeps the names of the graph's tensors. What it adds within a node, such as the reshape of a
    constant, has the type of what reads it.
    Layers with an integer, boolean or shape output keep their types, and a cast's type is its
    meaning, which TensorRT forbids to set again.
    """
    kinds: dict[DTypeName, Any] = {"float16": trt.DataType.HALF, "float32": trt.DataType.FLOAT}
    untouched = [getattr(trt.LayerType, name) for name in ("CAST", "SHAPE", "CONSTANT")]
    known = dict(types)
    fixed: Counter[DTypeName] = Counter()
    for number in reversed(range(network.num_layers)):
        layer = network.get_layer(number)
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        if layer.type in untouched or not outputs:
            continue
        if any(t.dtype not in kinds.values() or t.is_shape_tensor for t in outputs):
            continue
        kind = known.get(outputs[0].name, "float16")
        layer.precision = kinds[kind]
        for index in range(layer.num_outputs):
            layer.set_output_type(index, kinds[kind])
        for index in range(layer.num_inputs):
            source = layer.get_input(index)
            if source is not None:
                known.setdefault(source.name, kind)
        fixed[kind] += 1
    return fixed


def has_library(source: str) -> bool:
    """Whether a tactic source has its library here; those of TensorRT itself need none."""
    *names, symbol = TACTIC_LIBRARIES.get(source, ("",))
    for name in names:
        with suppress(OSError):
            if hasattr(ctypes.CDLL(name), symbol):
                return True
    return not names
