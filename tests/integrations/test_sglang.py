"""`integrations/sglang`: the folder, and the class that SGLang's VAE loader is sent to.

`integrations/sglang/check.py` loads the folder with SGLang's own loader.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import ort_engines
import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from qvae_trt.runtime.fallback import FallbackWarning

HERE = Path(__file__).resolve().parents[2] / "integrations" / "sglang"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(f"sglang_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch):
    def ran(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["make_folder.py", *map(str, words)])
        return load(HERE / "make_folder.py").main()

    return ran


def opened(folder: Path):
    """As SGLang's loader opens it."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    module, name = config["auto_map"]["AutoModel"].rsplit(".", 1)
    vae_class = getattr(load(folder / f"{module}.py"), name)
    vae = vae_class.from_pretrained(str(folder), revision=None, trust_remote_code=True)
    return vae.to(device=torch.device("cpu"), dtype=torch.float32)


def test_the_folder_leads_to_engines(tmp_path, tmp_path_factory, monkeypatch, run):
    engines = ort_engines.shared(tmp_path_factory)
    words = ["--model", "bundled:tiny", "--engine-dir", engines, "--out", tmp_path / "vae"]
    assert run(*words) == 0
    monkeypatch.setenv("QVAE_BACKEND", "onnxruntime")
    vae = opened(tmp_path / "vae")
    assert isinstance(vae, AutoencoderKLQwenImage)
    assert vae.use_parallel_decode is False
    z = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(4))
    expected = ort_engines.tiny().vae.decode(z, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(vae.decode(z).sample, expected, atol=1e-4, rtol=0)
    assert vae.memory()["engines"] == 1
    posterior = vae.encode(expected).latent_dist
    moments = ort_engines.tiny().vae.encode(expected).latent_dist.parameters
    torch.testing.assert_close(posterior.parameters, moments, atol=1e-3, rtol=1e-3)


def test_another_engine_folder_comes_from_the_environment(tmp_path, monkeypatch, run):
    assert run("--model", "bundled:tiny", "--out", tmp_path / "vae") == 0
    config = json.loads((tmp_path / "vae" / "config.json").read_text("utf-8"))
    assert config["qvae_engine_dir"] is None
    assert config["_class_name"] == "AutoencoderKLQwenImage"
    monkeypatch.setenv("QVAE_ENGINE_DIR", str(tmp_path / "none"))
    vae = opened(tmp_path / "vae")
    with pytest.warns(FallbackWarning, match="no engine serves it"):
        vae.decode(torch.zeros(1, 16, 1, 8, 8))


def test_diffusers_still_loads_the_folder(tmp_path, run):
    assert run("--model", "bundled:tiny", "--out", tmp_path) == 0
    vae = AutoencoderKLQwenImage.from_pretrained(tmp_path)
    assert torch.equal(vae.decoder.conv_in.weight, ort_engines.tiny().vae.decoder.conv_in.weight)


def test_a_missing_model_or_folder_is_an_error(tmp_path, run, capsys):
    assert run("--model", "random:no", "--out", tmp_path / "vae") == 1
    assert "no such built-in model" in capsys.readouterr().err
    words = ["--model", "bundled:tiny", "--engine-dir", tmp_path / "none", "--out", tmp_path / "v"]
    assert run(*words) == 1
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()
