"""The fused rung of the ladder on the CPU, where a double stands for the kernels."""

from __future__ import annotations

import shutil
import warnings

import ort_engines
import plain_kernels as plain
import pytest
import torch

from qvae_trt import backends, fused
from qvae_trt.errors import BackendError, EngineError, UsageError
from qvae_trt.folding import fold
from qvae_trt.fused import network
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.vae import load_vae, machine_here
from qvae_trt.store import measured

SIZE = Resolution(32, 40)


@pytest.fixture(scope="module")
def model():
    return load_model("bundled:tiny")


@pytest.fixture
def on_the_cpu(model, monkeypatch):
    """`fused.load` gives a network on plain PyTorch; the list of its calls."""
    made = []

    def load(vae, device):
        made.append(device)
        return network.FusedVae(fold(vae, lowering=network.LOWERING), vae, plain)

    monkeypatch.setattr(fused, "load", load)
    return made


@pytest.fixture
def built(engine_dir, tmp_path):
    """A folder with engines of one's own, their static size and their backend."""
    folder = tmp_path / "engines"
    shutil.copytree(engine_dir, folder)
    return folder, ort_engines.STATIC, backends.get("onnxruntime")


def latents() -> torch.Tensor:
    return torch.randn(
        (2, 16, 1, *QWEN_IMAGE.latents_of(SIZE)), generator=torch.Generator().manual_seed(1)
    )


def test_without_engines_it_serves_in_silence(model, on_the_cpu):
    vae = load_vae(None, model=model, device="cpu")
    z = latents()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = vae.decode(z).sample
    torch.testing.assert_close(y, fold(model.vae).decode(z), rtol=1e-3, atol=1e-4)
    choice = vae.choice("decoder", SIZE)
    assert choice.engine == "fused"
    assert on_the_cpu == [torch.device("cpu")]


def test_an_empty_folder_is_no_warning_either(model, on_the_cpu, tmp_path):
    vae = load_vae(tmp_path, model=model, device="cpu", backend="onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae.decode(latents())
    assert on_the_cpu


def test_with_engines_wanted_raise_means_engines(model, on_the_cpu, tmp_path):
    vae = load_vae(tmp_path, model=model, device="cpu", backend="onnxruntime", fallback="raise")
    with pytest.raises(EngineError, match="no engine serves it"):
        vae.decode(latents())


def test_an_engine_that_fails_is_told(model, on_the_cpu, tmp_path):
    path = tmp_path / "static" / str(SIZE) / "vae_decoder.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no engine")
    vae = load_vae(tmp_path, model=model, device="cpu", backend="onnxruntime")
    with pytest.warns(FallbackWarning, match="the fused path instead"):
        vae.decode(latents())


def test_where_it_cannot_run_the_folded_network_serves_and_says_so_once(model):
    vae = load_vae(None, model=model, device="cpu")
    with pytest.warns(FallbackWarning, match="^without engines: PyTorch instead: .*CUDA") as caught:
        vae.decode(latents())
        vae.decode(latents()[..., :3])
    assert len([w for w in caught if issubclass(w.category, FallbackWarning)]) == 1
    assert vae.choice("decoder", SIZE).engine == "folded"
    strict = load_vae(None, model=model, device="cpu", fallback="raise")
    with pytest.raises(BackendError, match="CUDA"):
        strict.decode(latents())


def test_gradients_are_the_folded_networks(model, on_the_cpu):
    vae = load_vae(None, model=model, device="cpu", fallback="silent")
    z = latents().requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert z.grad is not None
    assert on_the_cpu == []


@pytest.mark.parametrize("check_nan", [True, False])
def test_what_is_not_a_number_is_the_folded_networks_if_asked(
    model, on_the_cpu, monkeypatch, check_nan
):
    monkeypatch.setattr(
        network.FusedVae, "decode", lambda self, z: fold(model.vae).decode(z) * torch.nan
    )
    vae = load_vae(None, model=model, device="cpu", check_nan=check_nan)
    with pytest.warns(Warning, match="NaN or infinity"):
        y = vae.decode(latents()).sample
        vae.decode(latents())
    assert bool(torch.isfinite(y).all()) == check_nan


def test_released_weights_come_back_without_another_check(model, on_the_cpu):
    vae = load_vae(None, model=model, device="cpu")
    first = vae.decode(latents()).sample
    vae.release_memory()
    torch.testing.assert_close(vae.decode(latents()).sample, first, rtol=0, atol=0)
    assert len(on_the_cpu) == 1


@pytest.mark.parametrize(("fused_ms", "served"), [(1.0, "fused"), (9.0, "static")])
def test_the_fastest_is_what_was_measured(model, on_the_cpu, built, fused_ms, served):
    engine_dir, size, backend = built
    medians = {"decoder": {size: {"fused": fused_ms, "static": 5.0}}}
    measured.remember(engine_dir / measured.FILE_NAME, machine_here(backend), medians)
    vae = load_vae(
        engine_dir,
        model=model,
        device="cpu",
        backend="onnxruntime",
        fallback="raise",
        prefer="fastest",
    )
    choice = vae.choice("decoder", size)
    assert choice.engine == served
    assert sum(candidate.accepted for candidate in choice.candidates) == 1
    vae.decode(torch.randn(1, 16, 1, *QWEN_IMAGE.latents_of(size)))
    assert bool(on_the_cpu) == (served == "fused")


def test_a_preference_without_a_measurement_is_said(model, tmp_path):
    with pytest.warns(UserWarning, match="takes engines first"):
        load_vae(tmp_path, model=model, device="cpu", backend="onnxruntime", prefer="fastest")
    with pytest.raises(UsageError, match="prefer"):
        load_vae(None, model=model, prefer="slowest")
