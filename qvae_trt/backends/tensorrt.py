"""TensorRT 8.6, 10 and 11 (`tensorrt`) and TensorRT-RTX (`tensorrt_rtx`) behind one adapter."""

from __future__ import annotations

import importlib
import threading
from functools import partial
from pathlib import Path
from typing import Any

from qvae_trt.backends import devices
from qvae_trt.backends.devices import Device
from qvae_trt.backends.protocol import BuildOutcome, BuildSpec, Session, Verdict
from qvae_trt.backends.trt_build import PlanBuilder
from qvae_trt.backends.trt_session import Log, TensorRTSession
from qvae_trt.commands import rebuild_command
from qvae_trt.errors import BackendError, EngineError, StaleEngineError
from qvae_trt.files.reading import read_bytes
from qvae_trt.profiles import BACKENDS, Precision
from qvae_trt.progress import Progress, ignore

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

    suffix = BACKENDS["tensorrt"]

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
        name = f"{self.name} {self._version}"
        if not hasattr(self._trt, "Builder"):
            return Verdict(False, f"this {name} runs engines only", _INSTALL[self.name])
        if self._is_rtx:
            return Verdict(True, f"{name} builds without a GPU")
        return self._needs_gpu("building")

    def can_run(self) -> Verdict:
        verdict = self._needs_gpu("running")
        device = self.device()
        # An engine built with the defaults fits 8.0 and up; 7.5 must be built for by name, 9.0 is
        # in no list.
        known = getattr(self._trt, "ComputeCapability", None)
        if device is None or not self._is_rtx or known is None:
            return verdict
        wanted = f"SM{(device.compute_capability or '').replace('.', '')}"
        if hasattr(known, wanted) and wanted != "SM75":
            return verdict
        return Verdict(
            False,
            f"TensorRT-RTX {self._version} does not run on {device.name} "
            f"(compute capability {device.compute_capability}; expected 8.0, 8.6, 8.9 or 12.x)",
            "--backend tensorrt",
        )

    def _needs_gpu(self, doing: str) -> Verdict:
        name, device = f"{self.name} {self._version}", self.device()
        if device is not None:
            return Verdict(True, f"{name} on {device.name}")
        what = f"{name}: {doing} needs an NVIDIA GPU; {devices.absence()}"
        return Verdict(False, what, "on this machine: --backend onnxruntime")

    def supports(self, precision: Precision) -> Verdict:
        what = f"{self.name} {self._version} has {precision}"
        if precision != "bf16":
            return Verdict(True, what)
        if not hasattr(self._trt.DataType, "BF16"):
            what = f"TensorRT {self._version} has no bf16 (TensorRT 10 has)"
            return Verdict(False, what, "--precision fp16")
        device = None if self._is_rtx else self.device()
        if device is not None and _older(device, 8):
            found = device.compute_capability
            what = f"{device.name} has no bf16 (compute capability {found}, expected 8.0 or more)"
            return Verdict(False, what, "--precision fp16")
        return Verdict(True, what)

    def build(
        self, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress = ignore
    ) -> BuildOutcome:
        """See `backends.Backend.build`."""
        self.supports(spec.precision).require()
        self.can_build().require()
        gpu = str(self.identity()["gpu"])
        return PlanBuilder(
            self._trt, self._log, flavour=self.name, gpu=gpu, spec=spec, progress=progress
        ).build(onnx, out)

    def open(self, engine: Path) -> Session:
        """Deserialises. That runs code of the engine's maker: only open what you built."""
        self.can_run().require()
        rebuild = rebuild_command(engine, backend=self.name)
        fault = partial(EngineError, fix=f"build it: {rebuild}")
        data = read_bytes(engine, fault=fault, most_bytes=None)
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
        return TensorRTSession(self._trt, self._log, runtime, plan)


def _older(device: Device, major: int) -> bool:
    return int((device.compute_capability or "0").partition(".")[0]) < major
