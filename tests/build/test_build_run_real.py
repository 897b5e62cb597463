"""The whole way, from weights to engine files, with the real exporter and real backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvae_trt import backends, store
from qvae_trt.build import BuildSettings, build, plan_profiles, plan_static
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import find_kind
from qvae_trt.profiles import PARTS, Part, Resolution, load_static_sizes

SMALL = Resolution(128, 192)


def test_tiny_by_onnxruntime(tmp_path: Path) -> None:
    jobs = plan_static(tmp_path, [SMALL], suffix=".onnx")
    results = build(
        jobs, BuildSettings(model="bundled:tiny", backend="onnxruntime", command="qvae build")
    )
    assert [r.status for r in results] == ["built", "built"], [r.reason for r in results]
    encoder, decoder = (backends.get("onnxruntime").open(job.path) for job in jobs)
    x = np.random.default_rng(0).uniform(-1, 1, (1, 3, 1, 128, 192)).astype(np.float16)
    assert encoder.select(x.shape, 0) == 0
    moments = np.zeros(encoder.output_shape(), np.float16)
    nothing = {"scratch_ptr": 0, "scratch_bytes": 0, "stream": 0}
    encoder.execute(input_ptr=x.ctypes.data, output_ptr=moments.ctypes.data, **nothing)
    assert moments.shape == (1, 32, 1, 16, 24)
    latents = np.ascontiguousarray(moments[:, :16])
    decoder.select(latents.shape, 0)
    y = np.zeros(decoder.output_shape(), np.float16)
    decoder.execute(input_ptr=latents.ctypes.data, output_ptr=y.ctypes.data, **nothing)
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    assert y.min() >= -1
    assert y.max() <= 1
    kept = build(jobs, BuildSettings(model="bundled:tiny", backend="onnxruntime"))
    assert [r.status for r in kept] == ["kept", "kept"]
    stale = build(jobs[1:], BuildSettings(model="random:full", backend="onnxruntime", dry_run=True))
    assert "built from other weights" in stale[0].reason


@pytest.mark.parametrize("part", PARTS)
def test_tiny_by_rtx_in_all_seven_sizes(tmp_path: Path, part: Part) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    jobs = plan_static(tmp_path, load_static_sizes().values(), [part])
    assert len(jobs) == 7
    results = build(jobs, BuildSettings(model="bundled:tiny", backend="tensorrt_rtx"))
    assert [(r.job.path, r.reason) for r in results if r.status != "built"] == []
    for job in jobs:
        sidecar = store.check_engine(job.path)
        size = job.profiles[0].opt
        pixels, latents = (3, 1, size.height, size.width), (16, 1, *QWEN_IMAGE.latents_of(size))
        shapes = {"encoder": (1, *pixels), "decoder": (1, *latents)}
        assert sidecar.input.shape == shapes[job.part]
        assert sidecar.input.dtype == sidecar.output.dtype == "float16"
        assert (sidecar.key.gpu, sidecar.key.compute_capability) == ("any", None)


#: Least and most megabytes of a static plan: its weights in fp16, millions of them: 25 and 19, or
#: 253 and 79.
FULL = [
    pytest.param("random:full", {"decoder": (30, 100), "encoder": (30, 100)}),
    pytest.param(
        "random:full-2.1", {"decoder": (500, 600), "encoder": (150, 200)}, marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("model", "megabytes"), FULL)
def test_full_size_by_rtx(
    tmp_path: Path, model: str, megabytes: dict[Part, tuple[int, int]], part: Part
) -> None:
    """One static size and the nine profiles of the full architecture."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    kind = find_kind(model)
    jobs = [
        *plan_static(tmp_path, [kind.static_sizes["1:1"]], [part]),
        *plan_profiles(tmp_path, kind.profiles, [part]),
    ]
    static, nine = build(jobs, BuildSettings(model=model, backend="tensorrt_rtx"))
    assert (static.status, nine.status) == ("built", "built"), (static.reason, nine.reason)
    assert store.check_engine(nine.job.path).build_flags["profiles"] == "9"
    # Nine profiles share the weights.
    least, most = megabytes[part]
    assert least * 1e6 < (static.engine_bytes or 0) < most * 1e6
    assert (nine.engine_bytes or 0) < (most + 100) * 1e6
