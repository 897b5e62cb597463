"""Which GPUs there are, as the NVIDIA driver reports them; torch is not needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# CUdevice_attribute, CUstream_flags and CUstreamCaptureMode, from cuda.h; these values are part of
# the driver's ABI.
_MAJOR, _MINOR = 75, 76
_NON_BLOCKING = 1
_RELAXED = 2

# A Python int is passed as a C int, which would cut a handle to 32 bits.
_Handle = ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Device:
    """A place where engines run. `compute_capability` is `"9.0"`; None on a CPU, as are bytes and
    driver.
    """

    name: str
    compute_capability: str | None = None
    total_bytes: int | None = None
    driver: str | None = None


def gpus() -> tuple[Device, ...]:
    """Every GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES holds), in CUDA's order."""
    return _ask_driver()[0]


def gpu() -> Device | None:
    """The GPU of the calling thread's CUDA context, else the first; None where there is none."""
    found = gpus()
    if not found:
        return None
    index = current_index()
    return found[index] if index < len(found) else found[0]


def absence() -> str:
    """Why there is no GPU; only meaningful where `gpus()` is empty."""
    return _ask_driver()[1]


@lru_cache(maxsize=1)
def _ask_driver() -> tuple[tuple[Device, ...], str]:
    try:
        cuda = _driver()
    except OSError:
        return (), "no NVIDIA driver (libcuda.so.1 is not there)"
    status = cuda.cuInit(0)
    if status != 0:
        return (), f"the NVIDIA driver does not answer (cuInit: {_error_name(status)})"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    driver = _driver_version()
    found = tuple(_describe(cuda, index, driver) for index in range(count.value))
    return found, "" if found else "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES?)"


def _describe(cuda: ctypes.CDLL, index: int, driver: str | None) -> Device:
    handle = ctypes.c_int()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGetName(name, len(name), handle)
    total = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(total), handle)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    return Device(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        total_bytes=total.value,
        driver=driver,
    )


def current_index() -> int:
    """The ordinal of the thread's current device; 0 where no context exists yet, as CUDA's run-time
    starts there.
    """
    handle = ctypes.c_int()
    return handle.value if _call("cuCtxGetDevice", ctypes.byref(handle)) == 0 else 0


def _driver_version() -> str | None:
    """The driver's release, as `580.95.05`, from NVML; None where NVML is missing."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if nvml.nvmlInit_v2() != 0:
        return None
    text = ctypes.create_string_buffer(96)
    status = nvml.nvmlSystemGetDriverVersion(text, len(text))
    nvml.nvmlShutdown()
    return text.value.decode(errors="replace") if status == 0 else None


def _error_name(status: int) -> str:
    text = ctypes.c_char_p()
    if _driver().cuGetErrorName(status, ctypes.byref(text)) != 0 or text.value is None:
        return f"error {status}"
    return text.value.decode(errors="replace")


def create_stream() -> int:
    """A new CUDA stream of the calling thread's context, which lives as long as the process.

    Raises:
        RuntimeError: the driver refuses.
    """
    stream = _Handle()
    _check("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
    return stream.value or 0


def synchronize(stream: int) -> int:
    """Waits for a CUDA stream of the calling thread's context. Returns the driver's status, 0 for
    success.
    """
    return _call("cuStreamSynchronize", _Handle(stream))


def ensure_context(index: int) -> None:
    """Makes a device's primary context current where the calling thread has none, as a thread that
    has not used CUDA yet.

    Raises:
        RuntimeError: the driver refuses.
    """
    context = _Handle()
    _check("cuCtxGetCurrent", ctypes.byref(context))
    if context.value:
        return
    device = ctypes.c_int()
    _check("cuDeviceGet", ctypes.byref(device), index)
    _check("cuDevicePrimaryCtxRetain", ctypes.byref(context), device.value)
    _check("cuCtxSetCurrent", context)


def capture(stream: int, enqueue: Callable[[], object]) -> int:
    """An executable CUDA graph of what `enqueue` enqueues on `stream`; for `launch`, until
    `destroy`.

    The driver captures, not PyTorch: nothing of PyTorch's allocator or generators takes part, so
    that a failure leaves nothing of theirs behind, and other threads use both meanwhile.

    Raises:
        RuntimeError: the driver refuses. Also what `enqueue` raises. Either way the stream is no
            longer captured.
    """
    graph, executable = _Handle(), _Handle()
    _check("cuStreamBeginCapture_v2", _Handle(stream), _RELAXED)
    try:
        try:
            enqueue()
        finally:
            status = _call("cuStreamEndCapture", _Handle(stream), ctypes.byref(graph))
        _require("cuStreamEndCapture", status)
        _check(
            "cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0)
        )
    finally:
        if graph.value:
            _check("cuGraphDestroy", graph)
    return executable.value or 0


def launch(graph: int, stream: int) -> None:
    """Enqueues one run of an executable graph. RuntimeError where the driver refuses."""
    _check("cuGraphLaunch", _Handle(graph), _Handle(stream))


def destroy(graph: int) -> None:
    """Frees an executable graph that is not running. RuntimeError where the driver refuses."""
    _check("cuGraphExecDestroy", _Handle(graph))


def _check(name: str, *arguments: Any) -> None:
    _require(name, _call(name, *arguments))


def _call(name: str, *arguments: Any) -> int:
    try:
        function = getattr(_driver(), name)
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"the NVIDIA driver has no {name}: {error}") from error
    status: int = function(*arguments)
    return status


def _require(name: str, status: int) -> None:
    if status != 0:
        raise RuntimeError(f"{name}: {_error_name(status)}")


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")
