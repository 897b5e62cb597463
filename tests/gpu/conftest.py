"""Engines of the bundled VAE by TensorRT: those in `QVAE_GPU_ENGINES`, else built once a session.

Six engines take minutes to build; `gpu_engines.py` says how to build them beforehand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gpu_engines
import pytest
import torch

from qvae_trt import backends
from qvae_trt.build import BuildSettings, build
from qvae_trt.errors import BackendError
from qvae_trt.model import Model, load_model

_PHASES: list[str] = []


@contextmanager
def phase(name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        _PHASES.append(f"{name}: {time.perf_counter() - start:.1f} s")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _PHASES:
        terminalreporter.section("GPU tests: phases")
        for line in _PHASES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def model() -> Model:
    with phase("load the bundled VAE"):
        return load_model(gpu_engines.MODEL)


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory, model) -> Path:
    kept = os.environ.get("QVAE_GPU_ENGINES")
    try:
        tensorrt = backends.get("tensorrt")
        verdict = tensorrt.can_run() if kept else tensorrt.can_build()
    except BackendError as error:
        pytest.skip(f"needs TensorRT: {error.what}")
    if not verdict.ok:
        pytest.skip(f"needs TensorRT: {verdict.reason}")
    if kept:
        folder = Path(kept)
        planned = gpu_engines.jobs(folder)
        with phase(f"check {len(planned)} engines"):
            refused = gpu_engines.refusals(planned, model)
        commands = gpu_engines.commands(folder)
        assert not refused, "\n".join([*refused, "These commands build them:", commands])
        return folder
    folder = tmp_path_factory.mktemp("trt-engines")
    planned = gpu_engines.jobs(folder)
    with phase(f"build {len(planned)} engines"):
        results = build(
            planned,
            BuildSettings(
                model=gpu_engines.MODEL,
                backend="tensorrt",
                level=gpu_engines.LEVEL,
                command="tests/gpu",
            ),
        )
    failed = [f"{r.job.path}: {r.reason}" for r in results if r.status == "failed"]
    assert failed == []
    return folder


@pytest.fixture(scope="session")
def cuda() -> Iterator[None]:
    """CUDA has started, and float32 is float32: PyTorch's convolutions take TF32 by default, whose
    error is that of fp16.
    """
    with phase("start CUDA"):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
