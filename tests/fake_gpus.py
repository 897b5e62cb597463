"""GPUs that are not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qvae_trt.backends import devices

if TYPE_CHECKING:
    import pytest

H200 = devices.Device("NVIDIA H200", "9.0", 141 << 30, "580.95.05")
RTX_4090 = devices.Device("NVIDIA GeForce RTX 4090", "8.9", 24 << 30, "580.95.05")


def put_gpu(monkeypatch: pytest.MonkeyPatch, device: devices.Device | None) -> None:
    """The driver shows this GPU, or none."""
    monkeypatch.setattr(devices, "gpu", lambda: device)
    monkeypatch.setattr(devices, "gpus", lambda: () if device is None else (device,))
    monkeypatch.setattr(devices, "absence", lambda: "no NVIDIA driver (libcuda.so.1 is not there)")
