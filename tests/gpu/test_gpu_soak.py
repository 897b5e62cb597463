"""A short soak on the small engines; `soak.py` is the long one, on the full ones."""

from __future__ import annotations

import pytest
from gpu_sizes import STATIC, WIDE

from qvae_trt.profiles import Resolution
from qvae_trt.runtime.vae import load_vae

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_short_soak(engine_dir, cuda_graphs):
    from soak import soak

    largest = max(path.stat().st_size for path in engine_dir.rglob("*.trt"))
    vae = load_vae(
        engine_dir,
        model="bundled:tiny",
        backend="tensorrt",
        fallback="raise",
        memory_budget_bytes=3 * largest,
        cuda_graphs=cuda_graphs,
    )
    sizes = [*STATIC, WIDE.opt, WIDE.min, WIDE.max, Resolution(192, 512)]
    found = soak(vae, sizes, calls=400, threads=4)
    assert found.failures == []
