"""GPUs as the driver shows them."""

from __future__ import annotations

from typing import Any

import pytest

from qvae_trt.backends import devices


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
    for kept in (devices._driver, devices._ask_driver):
        kept.cache_clear()
    yield fake
    for kept in (devices._driver, devices._ask_driver):
        kept.cache_clear()


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
