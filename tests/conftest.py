"""What all tests share: no hub, one thread, and GPU tests that say why they are skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qvae_trt.backends import devices

# Before any test imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests that import onnxruntime themselves keep it from reporting home, as the package does.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# Kernels run in Triton's interpreter where there is no GPU; it is chosen when they are imported.
if not devices.gpus():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if devices.gpus():
        return
    skip = pytest.mark.skip(reason=f"needs an NVIDIA GPU: {devices.absence()}")
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


@pytest.fixture
def own_temporary_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The system's temporary folder, empty: what is left in it can be seen."""
    folder = tmp_path_factory.mktemp("system-tmp")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder
