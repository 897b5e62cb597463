"""PyTorch's side of the comparison: diffusers' own call, and the folded graph after its proof."""

from __future__ import annotations

import numpy as np
import ort_engines
import torch

from qvae_trt.model import BUNDLED_TINY, Model
from qvae_trt.profiles import Resolution
from qvae_trt.verify import reference, verify
from qvae_trt.verify.reference import PROOF_SIZE, Reference, exact_fp32, split_outputs


def test_moments_are_split_and_the_log_variance_clamped():
    moments = np.concatenate([np.full((1, 2, 1, 2, 2), 7.0), np.full((1, 2, 1, 2, 2), -90.0)], 1)
    parts = split_outputs("encoder", moments.astype(np.float32))
    assert parts["mean"].shape == parts["logvar"].shape == (1, 2, 1, 2, 2)
    assert np.all(parts["mean"] == 7)
    assert np.all(parts["logvar"] == -30)


def test_the_folded_graph_stands_in_at_large_sizes_after_it_was_proven(engines, monkeypatch):
    monkeypatch.setattr(reference, "DIFFUSERS_CPU_PIXELS", 64 * 64)
    report = verify(
        engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 96), Resolution(64, 64)]
    )
    assert report.ok, report.to_markdown()
    assert {(str(row.resolution), row.reference) for row in report.rows} == {
        ("96x64", "folded"),
        ("64x64", "diffusers"),
    }
    assert report.proof.fp32_equal
    assert report.proof.fp32_max_abs < 1e-5
    assert report.to_dict()["reference_proof"]["resolution"] == str(PROOF_SIZE)


def test_a_cpu_without_bf16_takes_the_folded_yardstick_at_every_size(engines, monkeypatch):
    monkeypatch.setattr(reference, "fast_bf16", lambda: False)
    report = verify(engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 64)])
    assert report.ok
    assert report.proof.bf16_ratio < 1.05
    assert {(row.reference, row.yardstick) for row in report.rows} == {("diffusers", "folded")}


def test_a_folded_graph_that_is_wrong_is_not_used(engines, monkeypatch):
    real = reference.fold

    def fold(vae):
        folded = real(vae)
        next(folded.decoder.parameters()).mul_(1.001)
        return folded

    monkeypatch.setattr(reference, "DIFFUSERS_CPU_PIXELS", 0)
    monkeypatch.setattr(reference, "fold", fold)
    report = verify(engines, model=BUNDLED_TINY, resolutions=[Resolution(64, 64)])
    assert {row.reference for row in report.rows} == {"diffusers"}
    assert not report.proof.fp32_equal
    assert report.ok
    assert "NOT equal" in report.to_markdown()


def test_the_reference_is_diffusers_own_call():
    model = ort_engines.tiny()
    ref = Reference(model, device=torch.device("cpu"))
    x = ref.input("encoder", "photograph", Resolution(48, 64))
    with torch.inference_mode():
        posterior = model.vae.encode(torch.from_numpy(x)).latent_dist
        image = model.vae.decode(posterior.mode()).sample
    found = ref.run("encoder", x, "fp32")
    assert np.array_equal(found["mean"], posterior.mean.numpy())
    assert np.array_equal(found["logvar"], posterior.logvar.numpy())
    z = ref.input("decoder", "encoded", Resolution(48, 64))
    assert np.array_equal(z, posterior.mode().numpy())
    assert np.array_equal(ref.run("decoder", z, "fp32")["images"], image.numpy())
    assert next(model.vae.parameters()).dtype == torch.float32


def test_tf32_is_off_for_the_reference_and_as_before_after_it():
    before = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        with exact_fp32():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32 == before[0]
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[1]


def test_tf32_is_off_where_pytorchs_flags_are_frozen(monkeypatch):
    """As after `torch.backends.disable_global_flags()`."""
    monkeypatch.setattr(torch.backends, "__allow_nonbracketed_mutation_flag", False)
    with exact_fp32():
        assert not torch.backends.cudnn.allow_tf32


def test_a_layered_vae_gets_pictures_of_four_channels():
    from diffusers import AutoencoderKLQwenImage

    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(base_dim=8, input_channels=4).eval().requires_grad_(False)
    ref = Reference(Model(vae=vae, source="test", weights_sha256=""), device=torch.device("cpu"))
    x = ref.input("encoder", "photograph", Resolution(32, 48))
    assert x.shape == (1, 4, 1, 32, 48)
    assert ref.run("encoder", x, "bf16")["mean"].shape == (1, 16, 1, 4, 6)
    z = ref.input("decoder", "encoded", Resolution(32, 48))
    assert ref.run("decoder", z, "fp32")["images"].shape == (1, 4, 1, 32, 48)
