"""Engines of the bundled VAE by TensorRT, made once; `QVAE_GPU_ENGINES` names a folder to keep
them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpu_sizes import STATIC, WIDE

from qvae_trt import backends
from qvae_trt.build import build, plan_profiles, plan_static
from qvae_trt.errors import BackendError


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory) -> Path:
    try:
        verdict = backends.get("tensorrt").can_build()
    except BackendError as error:
        pytest.skip(f"needs TensorRT: {error.what}")
    if not verdict.ok:
        pytest.skip(f"needs TensorRT: {verdict.reason}")
    kept = os.environ.get("QVAE_GPU_ENGINES")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("trt-engines")
    jobs = plan_static(folder, STATIC) + plan_profiles(folder, [WIDE])
    results = build(jobs, model="bundled:tiny", backend="tensorrt", level=1, command="tests/gpu")
    failed = [f"{r.job.path}: {r.reason}" for r in results if r.status == "failed"]
    assert failed == []
    return folder
