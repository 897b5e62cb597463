"""TensorRT 8.6, 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`) behind one adapter."""

from __future__ import annotations

import importlib
import json
import threading
from typing import TYPE_CHECKING, Any

from qvae_trt.backends import devices
from qvae_trt.backends.protocol import BuildOutcome, BuildSpec, Session, Verdict
from qvae_trt.backends.trt_build import PlanBuilder
from qvae_trt.backends.trt_log import Log
from qvae_trt.backends.trt_session import (
    TensorRTSession,
    describe,
    read_ranges,
    scratch_of_engine,
)
from qvae_trt.commands import rebuild_command
from qvae_trt.errors import BackendError, EngineError, StaleEngineError
from qvae_trt.files.reading import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.backends.devices import Device
    from qvae_trt.profiles import Precision
    from qvae_trt.progress import Progress

_INSTALL = {
    "tensorrt": "pip install tensorrt (needs an NVIDIA GPU), or --backend onnxruntime",
    "tensorrt_rtx": "pip install tensorrt-rtx, or --backend onnxruntime",
}
_logs: dict[Any, Log] = {}  # by module: a TensorRT takes one logger a process
_logs_lock = threading.Lock()


class TensorRT:
    """`backends.Backend` for one of the two flavours.

    Raises (on construction):
        BackendError: the flavour's Python package is missing or does not load.
    """

    suffix = ".trt"

    def __init__(self, flavour: str) -> None:
        self.name = flavour
        try:
            self._trt: Any = importlib.import_module(flavour)
            self._version = str(self._trt.__version__)
        except (ImportError, OSError, AttributeError) as error:
            raise BackendError(
                f"{flavour} does not import: {error}", fix=_INSTALL.get(flavour)
            ) from error

    @property
    def _log(self) -> Log:
        with _logs_lock:
            log = _logs.get(self._trt)
            if log is None:
                log = _logs[self._trt] = Log(self._trt)
            return log

    @property
    def _is_rtx(self) -> bool:
        return self.name == "tensorrt_rtx"

    def version(self) -> str:
        return self._version

    def device(self) -> Device | None:
        return devices.gpu()

    def identity(self) -> dict[str, str | None]:
        """See `backends.Backend.identity`. An RTX plan fits every GPU that RTX runs on."""
        device = None if self._is_rtx else self.device()
        gpu = "any" if self._is_rtx else (device.name if device else "none")
        return {
            "flavour": self.name,
            "flavour_version": self._version,
            "gpu": gpu,
            "compute_capability": device.compute_capability if device else None,
        }

    def can_build(self) -> Verdict:
        if not hasattr(self._trt, "Builder"):
            return Verdict(
                False, f"this {self.name} {self._version} runs engines only", _INSTALL[self.name]
            )
        if self._is_rtx:
            return Verdict(True, f"{self.name} {self._version} builds without a GPU")
        return self._needs_gpu("building")

    def can_run(self) -> Verdict:
        verdict = self._needs_gpu("running")
        device = self.device()
        if not verdict.ok or device is None or not self._is_rtx:
            return verdict
        # An engine built with the defaults fits 8.0 and up; 7.5 must be built for by name, 9.0 is
        # in no list.
        known = getattr(self._trt, "ComputeCapability", None)
        wanted = f"SM{(device.compute_capability or '').replace('.', '')}"
        if known is not None and (not hasattr(known, wanted) or wanted == "SM75"):
            return Verdict(
                False,
                f"TensorRT-RTX {self._version} does not run on {device.name} "
                f"(compute capability {device.compute_capability}; expected 8.0, 8.6, 8.9 or 12.x)",
                "--backend tensorrt",
            )
        return verdict

    def _needs_gpu(self, doing: str) -> Verdict:
        device = self.device()
        if device is None:
            return Verdict(
                False,
                f"{self.name} {self._version}: {doing} needs an NVIDIA GPU; {devices.absence()}",
                "on this machine: --backend onnxruntime",
            )
        return Verdict(True, f"{self.name} {self._version} on {device.name}")

    def supports(self, precision: Precision) -> Verdict:
        if precision == "bf16" and not hasattr(self._trt.DataType, "BF16"):
            return Verdict(
                False,
                f"TensorRT {self._version} has no bf16 (TensorRT 10 has)",
                "--precision fp16",
            )
        device = None if self._is_rtx else self.device()
        if precision == "bf16" and device is not None and _older(device, 8):
            return Verdict(
                False,
                f"{device.name} has no bf16 (compute capability {device.compute_capability}, "
                "expected 8.0 or more)",
                "--precision fp16",
            )
        return Verdict(True, f"{self.name} {self._version} has {precision}")

    def build(
        self, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress | None = None
    ) -> BuildOutcome:
        """See `backends.Backend.build`."""
        spec.check()
        self.supports(spec.precision).require()
        self.can_build().require()
        builder = PlanBuilder(
            self._trt,
            self._log,
            flavour=self.name,
            gpu=str(self.identity()["gpu"]),
            spec=spec,
            progress=progress,
        )
        return builder.build(onnx, out)

    def open(self, engine: Path) -> Session:
        """Deserialises. That runs code of the engine's maker: only open what you built."""
        runtime, plan = self._deserialize(engine)
        return TensorRTSession(self._trt, self._log, runtime, plan)

    def _deserialize(self, engine: Path) -> tuple[Any, Any]:
        self.can_run().require()
        rebuild = rebuild_command(engine, backend=self.name)
        try:
            with open_regular(engine) as file:
                data = file.read()
        except OSError as error:
            raise EngineError(
                f"{engine}: cannot be read: {error.strerror}", fix=f"build it: {rebuild}"
            ) from error
        if not data:
            raise EngineError(f"{engine}: empty file", fix=f"build it: {rebuild}")
        with self._log.listen() as heard:
            try:
                runtime = self._trt.Runtime(self._log.sink)
            except (TypeError, RuntimeError) as error:  # pybind: the factory returned nothing
                raise heard.explain(
                    BackendError, f"TensorRT's run-time does not start ({error})", fix="qvae doctor"
                ) from error
            plan = runtime.deserialize_cuda_engine(data)
            if plan is None:
                stale = any("version" in text.lower() for text in heard.errors)
                raise heard.explain(
                    StaleEngineError if stale else EngineError,
                    f"{engine}: {self.name} {self._version} does not load it",
                    fix=f"build it again: {rebuild} --force",
                )
        return runtime, plan

    def inspect(self, engine: Path) -> dict[str, object]:
        """Tensors, profiles, memory and layers of an engine file; needs what running needs."""
        runtime, plan = self._deserialize(engine)
        source, result = describe(self._trt, plan)
        inspector = plan.create_engine_inspector()
        if inspector is None:
            raise EngineError(f"{engine}: {self.name} {self._version} does not inspect it")
        text = inspector.get_engine_information(self._trt.LayerInformationFormat.JSON)
        found = (
            json.loads(text, strict=False) if text else {}
        )  # 8.6 leaves control characters in it
        ranges = read_ranges(plan, source)
        report: dict[str, object] = {
            "backend": self.name,
            "version": self._version,
            "input": {"name": source.name, "dtype": source.dtype, "shape": list(source.shape)},
            "output": {"name": result.name, "dtype": result.dtype, "shape": list(result.shape)},
            "profiles": [
                {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for r in ranges
            ],
            "scratch_bytes": scratch_of_engine(plan),
            "profile_scratch_bytes": _scratch_of_profiles(plan, len(ranges)),
            "layers": found.get("Layers", []),
        }
        del inspector, plan, runtime
        return report


def _older(device: Device, major: int) -> bool:
    return int((device.compute_capability or "0").partition(".")[0]) < major


def _scratch_of_profiles(plan: Any, count: int) -> list[int] | None:
    for name in ("get_device_memory_size_for_profile_v2", "get_device_memory_size_for_profile"):
        ask = getattr(plan, name, None)
        if ask is not None:
            return [int(ask(index)) for index in range(count)]
    return None  # 8.6 knows only the largest
