"""What builds and runs engines: one protocol, and the adapters that satisfy it.

Only modules of this package import `tensorrt`, `tensorrt_rtx` or `onnxruntime`, and only when an
adapter is used.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from qvae_trt.backends.devices import Device as Device
from qvae_trt.backends.protocol import ALIGNMENT_BYTES as ALIGNMENT_BYTES
from qvae_trt.backends.protocol import Backend as Backend  # noqa: TC001  for others
from qvae_trt.backends.protocol import BuildOutcome as BuildOutcome
from qvae_trt.backends.protocol import BuildSpec as BuildSpec
from qvae_trt.backends.protocol import Session as Session
from qvae_trt.backends.protocol import Verdict as Verdict
from qvae_trt.errors import BackendError, EngineError, UsageError
from qvae_trt.profiles import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.store import Sidecar


# onnxruntime 1.32 on Linux reports its use to its maker over the network, and leaves files in the
# home and the temporary folder, unless this stands before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def get(name: str) -> Backend:
    """The backend of that name.

    `auto` is `tensorrt` where it imports and a GPU answers, else `tensorrt_rtx` where it runs on
    that GPU, else `onnxruntime`.

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

        for flavour in ("tensorrt", "tensorrt_rtx"):
            with suppress(BackendError):
                if TensorRT(flavour).can_run().ok:
                    return flavour
        return "onnxruntime"
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r}: expected auto, {', '.join(BACKENDS)}")
    return name


def for_engine(path: Path, sidecar: Sidecar | None = None) -> Backend:
    """The backend that runs an engine file: its sidecar says which, else the file's suffix."""
    if sidecar is not None:
        return get(sidecar.key.flavour)
    for name, suffix in BACKENDS.items():
        if path.suffix == suffix:
            return get(name)
    raise EngineError(
        f"{path}: the suffix {path.suffix!r} is no engine's: expected .trt or .onnx",
        fix="qvae build makes engines with a sidecar that says what they are",
    )
