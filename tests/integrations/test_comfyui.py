"""`integrations/comfyui`: what ComfyUI asks of a VAE, by a small ComfyUI of our own.

`integrations/comfyui/check.py` asks the same of a real one.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ort_engines
import pytest
import torch
from released_names import original_name

from qvae_trt.errors import EngineError, ForeignEngineError, ModelError, UsageError
from qvae_trt.model import model_of_tensors, random_vae

NODE = Path(__file__).resolve().parents[2] / "integrations" / "comfyui" / "__init__.py"


class Patcher:
    """What ComfyUI's ModelPatcher takes."""

    def __init__(self, model, load_device, offload_device):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device


@pytest.fixture
def loaded():
    """The patchers that ComfyUI was told to load, with the memory asked for."""
    return []


@pytest.fixture
def node(monkeypatch, loaded):
    comfy = ModuleType("comfy")
    management = ModuleType("comfy.model_management")
    management.load_models_gpu = lambda models, memory_required: loaded.append(
        (models[0], memory_required)
    )
    patching = ModuleType("comfy.model_patcher")
    patching.ModelPatcher = Patcher
    comfy.model_management = management
    for module in (comfy, management, patching):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("qvae_comfyui", NODE)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


class Stock:
    """A ComfyUI VAE, of the bundled weights in the original layout."""

    def __init__(self, **changes):
        vae = ort_engines.tiny().vae
        self.first_stage_model = SimpleNamespace(
            encode=lambda x: vae.encode(x).latent_dist.mode(),
            decode=lambda z, **options: vae.decode(z, return_dict=False)[0],
        )
        cpu = torch.device("cpu")
        self.device, self.vae_dtype, self.not_video = cpu, torch.float32, False
        self.patcher = Patcher(self.first_stage_model, cpu, cpu)
        self.memory_used_encode = self.memory_used_decode = lambda shape, dtype: 7
        vars(self).update(changes)

    def throw_exception_if_invalid(self):
        if self.first_stage_model is None:
            raise RuntimeError("no VAE")

    def get_sd(self):
        state = ort_engines.tiny().vae.state_dict()
        return {original_name(name): value for name, value in state.items()}


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return ort_engines.shared(tmp_path_factory)


@pytest.fixture
def ours(node, engines):
    (made,) = node.NODE_CLASS_MAPPINGS["QvaeEngines"]().load(Stock(), str(engines), "onnxruntime")
    return made


def latents(*sides):
    return torch.randn(sides, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 160)])
def test_an_engine_serves_a_frame_of_its_size(ours, loaded, height, width):
    stock = Stock().first_stage_model
    z = latents(2, 16, 1, height // 8, width // 8)
    y = ours.first_stage_model.decode(z)
    torch.testing.assert_close(y, stock.decode(z).clamp(-1, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(
        ours.first_stage_model.encode(y), stock.encode(y), atol=1e-3, rtol=1e-3
    )
    assert loaded == []


@pytest.mark.parametrize("shape", [(1, 16, 2, 8, 12), (1, 16, 1, 3, 5), (1, 16, 1, 60, 60)])
def test_all_else_is_the_vaes_it_was_made_from(ours, loaded, shape, caplog):
    caplog.set_level(logging.INFO)
    z = latents(*shape)
    assert torch.equal(ours.first_stage_model.decode(z), Stock().first_stage_model.decode(z))
    (patcher, need), *_ = loaded
    assert need == 7
    assert patcher.model is not ours.first_stage_model
    if shape[2] == 1:
        assert "by the VAE it was made from" in caplog.text


def test_options_that_engines_do_not_know_are_the_stock_vaes(ours, loaded):
    ours.first_stage_model.decode(latents(1, 16, 1, 8, 12), chunks=2)
    assert len(loaded) == 1


def test_a_batch_is_pictures_and_no_video(ours):
    assert ours.not_video
    assert not Stock().not_video


def test_memory_is_told_and_given_back(ours):
    patcher, model = ours.patcher, ours.first_stage_model
    expected = patcher.model_size()
    assert expected > 0 and patcher.loaded_size() == 0
    assert patcher.partially_load("cuda:0", 1e9, force_patch_weights=False) == 0
    assert model.device == "cuda:0"
    model.decode(latents(1, 16, 1, 8, 12))
    held = patcher.loaded_size()
    assert 0 < held <= patcher.model_size()
    assert patcher.partially_unload("cpu", 1) == held
    assert patcher.loaded_size() == 0
    model.decode(latents(1, 16, 1, 8, 12))
    patcher.detach(unpatch_all=False)
    assert patcher.loaded_size() == held
    assert patcher.detach() is model
    assert (patcher.loaded_size(), model.device) == (0, torch.device("cpu"))


def test_working_memory_is_what_serves_takes(ours):
    assert ours.memory_used_decode((1, 16, 1, 8, 12), torch.float32) == 64 * 96 * 1000
    assert ours.memory_used_encode((1, 3, 1, 64, 96), torch.float32) == 64 * 96 * 1000
    assert ours.memory_used_decode((1, 16, 3, 8, 12), torch.float32) == 7


def test_the_vae_it_was_made_from_stays_as_it_was(node, engines):
    stock = Stock()
    before = dict(vars(stock))
    made = node.served(stock, str(engines), "onnxruntime")
    assert vars(stock) == before
    assert made.vae_dtype == torch.float32
    with pytest.raises(UsageError, match="has engines already"):
        node.served(made, str(engines))


def test_what_cannot_be_served_is_refused_in_words(node, engines, tmp_path):
    other = Stock()
    other.get_sd = lambda: {name: value * 1.01 for name, value in Stock().get_sd().items()}
    with pytest.raises(ForeignEngineError, match="of other weights than the VAE: found"):
        node.served(other, str(engines))
    with pytest.raises(EngineError, match="no such folder"):
        node.served(Stock(), str(tmp_path / "none"))
    with pytest.raises(ModelError, match="the VAE: has no tensor"):
        node.served(
            SimpleNamespace(
                **vars(other) | {"get_sd": dict, "throw_exception_if_invalid": lambda: None}
            ),
            "",
        )
    with pytest.raises(RuntimeError, match="no VAE"):
        node.served(Stock(first_stage_model=None), "")
    old = Stock()
    del old.not_video
    with pytest.raises(UsageError, match="too old"):
        node.served(old, "")


def test_without_a_folder_the_fused_path_is_all(node, loaded):
    made = node.served(Stock(), " ")
    z = latents(1, 16, 1, 8, 12)
    assert torch.equal(made.first_stage_model.decode(z), Stock().first_stage_model.decode(z))
    assert len(loaded) == 1
    assert made.patcher.model_size() == 0


def test_tensors_in_memory_are_the_model_of_the_file():
    vae = ort_engines.tiny().vae
    half = {original_name(name): value.bfloat16() for name, value in vae.state_dict().items()}
    model = model_of_tensors(half, where="these")
    again = {name: value.bfloat16().float() for name, value in vae.state_dict().items()}
    assert model.weights_sha256 == model_of_tensors(again, where="those").weights_sha256
    assert model.vae.state_dict()["encoder.conv_in.weight"].dtype == torch.float32
    assert model.weights_sha256 != ort_engines.tiny().weights_sha256
    whole = model_of_tensors(vae.state_dict(), where="it")
    assert whole.weights_sha256 == ort_engines.tiny().weights_sha256
    wider = random_vae({"base_dim": 8, "z_dim": 4}).state_dict()
    with pytest.raises(ModelError, match="found 4 latent channels, expected 16"):
        model_of_tensors(wider, where="other")
