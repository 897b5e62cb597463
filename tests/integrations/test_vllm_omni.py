"""`integrations/vllm_omni`: what is replaced after a pipeline has loaded, and what stays.

`integrations/vllm_omni/check.py` does it with vLLM-Omni's own plugin loader.
"""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ort_engines
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage

HERE = Path(__file__).resolve().parents[2] / "integrations" / "vllm_omni"


class Parallel(AutoencoderKLQwenImage):
    """As vLLM-Omni's own, which several ranks may run together."""

    several = False

    def is_distributed_enabled(self) -> bool:
        return self.several


def made(kind=Parallel):
    vae = kind.from_config(ort_engines.tiny().vae.config)
    vae.load_state_dict(ort_engines.tiny().vae.state_dict())
    return vae.eval()


@pytest.fixture
def plugin():
    spec = importlib.util.spec_from_file_location("qvae_vllm_omni", HERE / "qvae_vllm_omni.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def loader(monkeypatch):
    """vLLM-Omni's loader of pipelines, where the plugin looks for it."""

    class Loader:
        def load_model(self, load_device, *, vae):
            return SimpleNamespace(vae=vae)

    module = ModuleType("vllm_omni.diffusion.model_loader.diffusers_loader")
    module.DiffusersPipelineLoader = Loader
    for name in ("vllm_omni", "vllm_omni.diffusion", "vllm_omni.diffusion.model_loader"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Loader


def test_it_is_off_unless_it_is_switched_on(plugin, loader, monkeypatch):
    before = loader.load_model
    for value in (None, "", "0"):
        if value is not None:
            monkeypatch.setenv("QVAE_VLLM_OMNI", value)
        plugin.register()
        assert loader.load_model is before


def test_engines_run_the_vae_of_a_loaded_pipeline(plugin, loader, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("QVAE_VLLM_OMNI", "1")
    monkeypatch.setenv("QVAE_ENGINE_DIR", str(ort_engines.shared(tmp_path_factory)))
    monkeypatch.setenv("QVAE_BACKEND", "onnxruntime")
    plugin.register()
    plugin.register()  # each process may call it again
    assert not hasattr(loader.load_model.before_qvae, "before_qvae")
    stock = made()
    stock.register_to_config(latents_mean=[0.5] * 16)
    stock.use_tiling = True
    vae = loader().load_model("cpu", vae=stock).vae
    assert type(vae).__name__ == "TrtVae"
    assert vae.config.latents_mean == [0.5] * 16
    assert vae.use_tiling
    z = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(6))
    expected = ort_engines.tiny().vae.decode(z, return_dict=False)[0].clamp(-1, 1)
    pixels = vae.decode(z, return_dict=False)[0]
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)
    assert vae.memory()["engines"] == 1


def test_other_vaes_stay(plugin, caplog):
    several = made()
    several.several = True
    other = AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    for vae in (several, other, None):
        pipeline = SimpleNamespace(vae=vae)
        plugin.replace_vae(pipeline)
        assert pipeline.vae is vae
    assert "several ranks" in caplog.text
    empty = SimpleNamespace()
    plugin.replace_vae(empty)
    assert not hasattr(empty, "vae")


def test_the_entry_point_is_the_function(plugin):
    project = tomllib.loads((HERE / "pyproject.toml").read_text("utf-8"))["project"]
    (entry,) = project["entry-points"]["vllm_omni.general_plugins"].values()
    module, _, function = entry.partition(":")
    assert (HERE / f"{module}.py").is_file()
    assert callable(getattr(plugin, function))
