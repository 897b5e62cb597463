"""A VAE that goes to another process: what it is made of goes, and is loaded there."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from ort_engines import STATIC, tiny

from qvae_trt.errors import ModelError, UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.runtime.lightx2v import from_lightx2v_config
from qvae_trt.runtime.vae import TrtVae, load_vae

Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)


@pytest.fixture
def vae(engine_dir) -> TrtVae:
    return load_vae(
        engine_dir,
        model="bundled:tiny",
        backend="onnxruntime",
        fallback="raise",
        dtype=torch.float16,
        check_nan=True,
        memory_budget_bytes=10**9,
        cuda_graphs=True,
    )


def again(vae):
    return pickle.loads(pickle.dumps(vae))


def test_it_is_what_it_was(vae):
    vae.enable_tiling(128, 256)
    expected = vae.decode(Z).sample
    twin = again(vae)
    assert isinstance(twin, TrtVae)
    assert (twin.dtype, twin.device, twin.config) == (vae.dtype, vae.device, vae.config)
    assert (twin.use_tiling, twin.tile_sample_min_width, twin.tile_sample_stride_height) == (
        True,
        256,
        96,
    )
    ladder = twin._ladder
    assert (ladder.settings.fallback, ladder.settings.check_nan, ladder.engines.cuda_graphs) == (
        "raise",
        True,
        True,
    )
    assert twin.memory()["engines"] == 0, "engines do not go"
    torch.testing.assert_close(twin.decode(Z).sample, expected, rtol=0, atol=0)
    assert vae.memory()["engines"] == 1
    assert len(pickle.dumps(vae)) < 10_000, "nor do weights"


SCRIPT = """
import pickle, sys, torch
vae = pickle.load(open(sys.argv[1], "rb"))
torch.save(vae.decode(torch.load(sys.argv[2], weights_only=True)).sample, sys.argv[3])
"""


def test_another_process_in_another_folder_runs_it(engine_dir, tmp_path, monkeypatch):
    """Both paths are relative where it is made."""
    tiny().vae.save_pretrained(tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    engines = os.path.relpath(engine_dir, tmp_path)
    options = {"backend": "onnxruntime", "fallback": "raise"}
    vae = load_vae(engines, model="weights", **options)
    (tmp_path / "there").mkdir()
    (tmp_path / "vae.pkl").write_bytes(pickle.dumps(vae))
    torch.save(Z, tmp_path / "z.pt")
    given = [tmp_path / name for name in ("vae.pkl", "z.pt", "y.pt")]
    command = [sys.executable, "-c", SCRIPT, *map(str, given)]
    subprocess.run(command, cwd=tmp_path / "there", check=True)
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    torch.testing.assert_close(found, vae.decode(Z).sample, rtol=0, atol=0)


def test_torch_saves_it_too(vae):
    file = io.BytesIO()
    torch.save(vae, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert twin.dtype == vae.dtype


def test_other_weights_by_now_are_refused(engine_dir, tmp_path):
    tiny().vae.save_pretrained(tmp_path)
    pickled = pickle.dumps(load_vae(engine_dir, model=tmp_path, backend="onnxruntime"))
    other = copy.deepcopy(tiny().vae)
    with torch.no_grad():
        next(other.parameters()).mul_(1.1)
    other.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="other weights than those of the VAE that was pickled"):
        pickle.loads(pickled)


def test_weights_without_a_name_are_said(engine_dir):
    nameless = load_vae(engine_dir, model=replace(tiny(), source=""), backend="onnxruntime")
    with pytest.raises(UsageError, match="cannot be pickled: its weights have no name"):
        pickle.dumps(nameless)
    copy.deepcopy(nameless)


def test_a_copy_shares_engines_and_weights(vae):
    vae.decode(Z)
    for twin in (copy.copy(vae), copy.deepcopy(vae)):
        assert twin.memory()["engines"] == 1
        twin.to(torch.float32)
        twin.enable_tiling()
    assert vae.dtype == torch.float16
    assert not vae.use_tiling


def test_the_vae_of_lightx2v_goes_too(engine_dir, tmp_path):
    tiny().vae.save_pretrained(tmp_path / "vae")
    config = {
        "vae_path": str(tmp_path / "vae"),
        "trt_vae_config": {"trt_engine_path": str(engine_dir / "profiles"), "multi_profile": True},
    }
    vae = from_lightx2v_config(config, backend="onnxruntime", fallback="raise")
    twin = again(vae)
    x = torch.zeros(1, 3, 1, 64, 64)
    torch.testing.assert_close(twin.encode_vae_image(x), vae.encode_vae_image(x), rtol=0, atol=0)
