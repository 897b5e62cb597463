"""Which backend, and what every backend is asked."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fake_tensorrt
import pytest
from fake_gpus import H200, put_gpu

from qvae_trt import backends
from qvae_trt.backends import BuildSpec, Verdict, devices
from qvae_trt.errors import BackendError, EngineError, UsageError
from qvae_trt.tensors import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_auto_takes_tensorrt_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6"):
        assert backends.get("auto").name == "tensorrt"
        put_gpu(monkeypatch, None)
        assert backends.get("auto").name == "onnxruntime"


def test_auto_without_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it were not installed
    assert backends.get("auto").name == "onnxruntime"


@pytest.mark.parametrize(("capability", "name"), [("12.0", "tensorrt_rtx"), ("9.0", "onnxruntime")])
def test_auto_takes_rtx_where_it_alone_runs(
    capability: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, replace(H200, name="a card", compute_capability=capability))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with fake_tensorrt.installed("rtx"):
        assert backends.get("auto").name == name


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_absent_flavour(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=f"{name} does not import") as caught:
        backends.get(name)
    assert "pip install tensorrt" in str(caught.value.fix)


def test_absent_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="onnxruntime does not import"):
        backends.get("onnxruntime")


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="'openvino': expected auto, tensorrt"):
        backends.get("openvino")


@pytest.mark.parametrize(("file", "name"), [("a.onnx", "onnxruntime"), ("a.trt", "tensorrt")])
def test_for_engine_without_sidecar(file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6"):
        assert backends.for_engine(Path(file)).name == name


def test_for_engine_of_unknown_suffix() -> None:
    with pytest.raises(EngineError, match=r"'\.plan' is no engine's"):
        backends.for_engine(Path("a.plan"))


def test_for_engine_with_sidecar() -> None:
    class Key:
        flavour = "onnxruntime"

    class Sidecar:
        key = Key()

    sidecar: Any = Sidecar()
    assert backends.for_engine(Path("a.trt"), sidecar).name == "onnxruntime"


def test_verdict() -> None:
    Verdict(True, "fine").require()
    with pytest.raises(BackendError, match="no GPU") as caught:
        Verdict(False, "no GPU", "buy one").require()
    assert caught.value.fix == "buy one"


@pytest.mark.parametrize(
    ("shape", "refusal"),
    [
        ((1, 8), None),
        ((1, 4), None),
        ((1, 3), "dimension 1 is 3, expected 4..8"),
        ((2, 9), "dimension 0 is 2, expected 1..1; dimension 1 is 9, expected 4..8"),
        ((1,), "1 dimensions, expected 2"),
    ],
)
def test_range(shape: tuple[int, ...], refusal: str | None) -> None:
    assert ShapeRange((1, 4), (1, 5), (1, 8)).refusal(shape) == refusal


def test_fixed_range() -> None:
    fixed = ShapeRange.fixed((1, 2))
    assert fixed.is_fixed
    assert fixed.refusal((1, 3)) is not None
    assert not ShapeRange((1, 4), (1, 5), (1, 8)).is_fixed


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ((), "no shape range"),
        ((ShapeRange((1,), (1, 2), (1,)),), "differ in rank"),
        ((ShapeRange((2,), (1,), (3,)),), "min 2, opt 1, max 3"),
    ],
)
def test_spec_that_no_backend_takes(ranges: Sequence[ShapeRange], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildSpec(input_name="x", ranges=tuple(ranges), precision="fp16").check()


# --- the driver ---------------------------------------------------------------------------------


def test_the_driver_is_asked_once_and_answers_something() -> None:
    found = devices.gpus()
    assert devices.gpus() is found
    assert (devices.gpu() is None) == (found == ())
    assert bool(devices.absence()) == (found == ())


class _Driver:
    """A libcuda of two GPUs."""

    def __init__(self, *, status: int = 0, count: int = 2) -> None:
        self.status, self.count, self.streams = status, count, 0

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuGetErrorName(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.count
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, text: Any, size: int, handle: Any) -> int:  # noqa: N802
        text.value = f"GPU {handle.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, total: Any, handle: Any) -> int:  # noqa: N802
        total._obj.value = 80 << 30
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:  # noqa: N802
        value._obj.value = {75: 9, 76: handle.value}[attribute]
        return 0

    def cuCtxGetDevice(self, handle: Any) -> int:  # noqa: N802
        handle._obj.value = 1
        return 0

    def cuStreamCreate(self, stream: Any, flags: int) -> int:  # noqa: N802
        assert flags == 1, "must not wait for the default stream"
        self.streams += 1
        stream._obj.value = 0x1000 * self.streams
        return self.status


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    fake = _Driver(**getattr(request, "param", {}))

    def load(name: str) -> Any:
        if name != "libcuda.so.1":
            raise OSError(name)
        return fake

    monkeypatch.setattr(devices.ctypes, "CDLL", load)
    devices._ask_driver.cache_clear()
    yield fake
    devices._ask_driver.cache_clear()


def test_gpus_in_cudas_order_and_the_current_one(driver: Any) -> None:
    assert [gpu.name for gpu in devices.gpus()] == ["GPU 0", "GPU 1"]
    assert devices.gpu() == devices.Device("GPU 1", "9.1", 80 << 30, None)


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        ({"status": 100}, "cuInit: CUDA_ERROR_NO_DEVICE"),
        ({"count": 0}, "CUDA_VISIBLE_DEVICES"),
    ],
    indirect=["driver"],
)
def test_why_there_is_no_gpu(driver: Any, why: str) -> None:
    assert devices.gpus() == ()
    assert why in devices.absence()
    assert devices.gpu() is None


def test_every_stream_is_a_new_one(driver: Any) -> None:
    assert [devices.create_stream(), devices.create_stream()] == [0x1000, 0x2000]


@pytest.mark.parametrize("driver", [{"status": 100}], indirect=True)
def test_a_stream_that_the_driver_refuses(driver: Any) -> None:
    with pytest.raises(RuntimeError, match="cuStreamCreate: CUDA_ERROR_NO_DEVICE"):
        devices.create_stream()
