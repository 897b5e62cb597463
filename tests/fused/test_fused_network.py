"""The fused network's order of operations against the folded one, exact in float32."""

from __future__ import annotations

import copy
import sys
import types
import warnings

import plain_kernels as plain
import pytest
import torch

from qvae_trt import fused
from qvae_trt.errors import BackendError
from qvae_trt.folding import fold
from qvae_trt.fused import network
from qvae_trt.model import load_model
from qvae_trt.model.seeded import random_vae

#: In latents.
SIZES = [(1, 1), (3, 5), (1, 8), (8, 1), (9, 6)]
MODELS = {"bundled": "bundled:tiny", "2.1": "random:tiny-2.1"}


def fuse(vae) -> network.FusedVae:
    return network.FusedVae(fold(vae, lowering=network.LOWERING), vae, plain)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


class Every:
    """Fills all 3x3 convolutions of blocks up, as `network.FILLED` does some."""

    def get(self, channels: tuple[int, int], out: int) -> int:
        return out + 8


@pytest.fixture(scope="module", params=["bundled", "RGBA", "2.1", "bundled filled", "2.1 filled"])
def pair(request):
    model, _, filled = request.param.partition(" ")
    if model in MODELS:
        vae = load_model(MODELS[model]).vae
    else:
        vae = random_vae({**dict(load_model("bundled:tiny").vae.config), "input_channels": 4})
    with pytest.MonkeyPatch.context() as patch:
        if filled:
            patch.setattr(network, "FILLED", Every())
        return fold(vae), fuse(vae)


@pytest.mark.parametrize("size", SIZES)
def test_it_computes_what_the_folded_network_does(pair, size):
    folded, found = pair
    colours = folded.encoder.layers[0].in_channels
    generator = torch.Generator().manual_seed(size[0])
    sides = [folded.scale * side for side in size]
    x = torch.rand((1, colours, 1, *sides), generator=generator) * 2 - 1
    moments = folded.encode(x)
    assert error(found.encode(x), moments) < 1e-5
    latents = moments.chunk(2, dim=1)[0]
    assert error(found.decode(latents), folded.decode(latents)) < 1e-5


@pytest.mark.parametrize("size", [(13, 21), (27, 8), (46, 63)])
def test_pictures_of_any_size_are_encoded(pair, size):
    folded, found = pair
    if folded.scale == 16:  # whose shortcuts take whole squares only
        size = (32, 80)
    colours = folded.encoder.layers[0].in_channels
    x = torch.rand((1, colours, 1, *size), generator=torch.Generator().manual_seed(9)) * 2 - 1
    assert error(found.encode(x), folded.encode(x)) < 1e-5


def test_inputs_stay_as_they_are(pair):
    _, found = pair
    z = torch.randn(1, found.decoder.quant.shape[1], 1, 3, 4)
    before = z.clone()
    first = found.decode(z)
    assert torch.equal(z, before)
    assert torch.equal(found.decode(z), first)


@pytest.mark.parametrize("scale", [0.01, 30.0, 1000.0])
@pytest.mark.parametrize("model", MODELS.values())
def test_float16_holds_activations_of_any_scale(scale, model):
    """Norms take the scale out again, so the picture stays and the stream between grows."""
    vae = copy.deepcopy(load_model(model).vae)
    with torch.no_grad():
        for name, parameter in vae.decoder.named_parameters():
            if "conv_in" in name or ".conv2" in name or "resample" in name or "proj" in name:
                parameter.mul_(scale)
    z = torch.randn((1, vae.config.z_dim, 1, 6, 5), generator=torch.Generator().manual_seed(3))
    expected = fold(vae).decode(z)
    bf16 = error(fold(vae).to(torch.bfloat16).decode(z.bfloat16()).float(), expected)
    assert error(fuse(vae).half().decode(z.half()).float(), expected) < bf16 / 3


@pytest.fixture
def anywhere(monkeypatch):
    """`fused.load` on the CPU, with plain PyTorch for the kernels."""
    monkeypatch.setattr(fused, "refusal", lambda device: None)
    kernels = types.SimpleNamespace(
        sum_norm=plain.sum_norm,
        average=plain.average,
        stem=plain.stem,
        head=plain.head,
        attend=plain.attend,
    )
    monkeypatch.setitem(sys.modules, "qvae_trt.fused.kernels", kernels)
    monkeypatch.setattr(fused, "kernels", kernels, raising=False)
    return torch.device("cpu")


@pytest.mark.parametrize("model", MODELS.values())
def test_float16_is_checked_and_taken(anywhere, model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fused.load(load_model(model).vae, anywhere).dtype == torch.float16


def test_weights_that_float16_does_not_hold_get_bfloat16_and_it_is_said(anywhere):
    vae = copy.deepcopy(load_model("bundled:tiny").vae)
    with torch.no_grad():  # logits of attention past 65,504: scores are float32, queries are not
        vae.decoder.mid_block.attentions[0].to_qkv.weight.mul_(1e5)
        vae.decoder.mid_block.attentions[0].proj.weight.mul_(1e-5)
    with pytest.warns(RuntimeWarning, match="bfloat16"):
        assert fused.load(vae, anywhere).dtype == torch.bfloat16


def test_a_kernel_that_is_wrong_is_refused(anywhere, monkeypatch):
    wrong = sys.modules["qvae_trt.fused.kernels"]
    monkeypatch.setattr(wrong, "attend", lambda qkv: plain.attend(qkv) * 1.5)
    with pytest.raises(BackendError, match="differs from the folded network"):
        fused.load(load_model("bundled:tiny").vae, anywhere)


def test_a_device_that_cannot_is_told_why():
    assert "CUDA" in fused.refusal(torch.device("cpu"))
    with pytest.raises(BackendError, match="CUDA"):
        fused.load(load_model("bundled:tiny").vae, torch.device("cpu"))
