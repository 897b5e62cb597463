"""What all tests share: no hub, one thread, and GPU tests that say why they are skipped."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

# Before any test imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that import onnxruntime themselves keep it from reporting home, as the package does.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

ROOT = Path(__file__).resolve().parent.parent


def gpu_missing() -> str | None:
    """Why no NVIDIA GPU can be used here, or None. The driver is asked: torch may lack CUDA."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1)"
    if driver.cuInit(0) != 0:
        return "the NVIDIA driver does not start (cuInit)"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver has no GPU"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = gpu_missing()
    if reason is None:
        return
    skip = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def python() -> str:
    return sys.executable
