"""A short soak on the small engines; `soak.py` is the long one, on the full ones."""

from __future__ import annotations

import pytest
from gpu_engines import PROFILES_FILE, STATIC
from soak import soak

from qvae_trt.profiles import load_profiles
from qvae_trt.runtime.vae import load_vae

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.usefixtures("cuda")]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_short_soak(engine_dir, model, cuda_graphs):
    largest = max(path.stat().st_size for path in engine_dir.rglob("*.trt"))
    vae = load_vae(
        engine_dir,
        model=model,
        backend="tensorrt",
        fallback="raise",
        memory_budget_bytes=3 * largest,
        cuda_graphs=cuda_graphs,
    )
    ranges = load_profiles(PROFILES_FILE)
    sizes = dict.fromkeys([*STATIC, *(size for p in ranges for size in (p.min, p.opt, p.max))])
    found = soak(vae, list(sizes), calls=400, threads=4)
    assert found.not_served == []
    assert found.failures == []
