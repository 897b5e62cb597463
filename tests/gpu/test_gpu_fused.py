"""The fused path on a real GPU: no engines, any size."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch

from qvae_trt import fused
from qvae_trt.errors import BackendError, ExecutionError
from qvae_trt.model import Model, load_model
from qvae_trt.model.seeded import random_vae
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.vae import TrtVae, load_vae

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda")]

#: (height, width) in pixels, none of them square.
SIZES = [(8, 16), (64, 200), (264, 328), (512, 384)]


@pytest.fixture(scope="module")
def original(model):
    """On the CPU: PyTorch's attention on a GPU refuses pictures of a few tokens in float32."""
    return model.vae


@pytest.fixture
def vae(model):
    return load_vae(None, model=model, fallback="raise")


def picture(size: tuple[int, int], *, batch: int = 1, colours: int = 3) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(size[0] + size[1])
    return torch.rand((batch, colours, 1, *size), generator=generator, device="cuda") * 2 - 1


def latents(size: tuple[int, int], *, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(size[0] * size[1])
    shape = (batch, 16, 1, size[0] // 8, size[1] // 8)
    return torch.randn(shape, generator=generator, device="cuda")


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.float().cpu(), expected.float().cpu()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("size", SIZES)
def test_results_are_those_of_diffusers_in_fp32(vae, original, size):
    x, z = picture(size), latents(size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moments = vae.encode(x).latent_dist.parameters
        pixels = vae.decode(z).sample
    assert error(moments, original.encode(x.cpu()).latent_dist.parameters) < 5e-3
    assert error(pixels, original.decode(z.cpu()).sample) < 1e-2
    assert float(pixels.abs().max()) <= 1.0


def test_the_dtype_is_the_callers(vae):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert vae.decode(latents((64, 72)).to(dtype)).sample.dtype == dtype
        assert vae.encode(picture((64, 72)).to(dtype)).latent_dist.parameters.dtype == dtype


def test_batches_are_their_pictures(vae):
    z = latents((64, 96), batch=3)
    y = vae.decode(z).sample
    assert y.shape == (3, 3, 1, 64, 96)
    for index in range(3):
        torch.testing.assert_close(
            y[index : index + 1], vae.decode(z[index : index + 1]).sample, rtol=0, atol=0
        )


def test_rgba(model):
    config = dict(model.vae.config) | {"input_channels": 4}
    small = random_vae(config)
    vae = load_vae(
        None, model=Model(small, source="rgba", weights_sha256="a" * 64), fallback="raise"
    )
    x = picture((72, 64), colours=4)
    reference = copy.deepcopy(small).to("cuda")
    assert (
        error(vae.encode(x).latent_dist.parameters, reference.encode(x).latent_dist.parameters)
        < 5e-3
    )
    z = latents((72, 64))
    assert error(vae.decode(z).sample, reference.decode(z).sample) < 1e-2


def test_it_is_what_choice_says(vae):
    choice = vae.choice("decoder", Resolution(264, 328))
    assert choice.engine == "fused"
    assert "+ fused" in choice.explain()


def test_streams_and_threads_give_the_same(vae):
    z = {size: latents(size) for size in SIZES}
    expected = {size: vae.decode(value).sample for size, value in z.items()}
    torch.cuda.synchronize()
    wrong: list[tuple[int, int]] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(10):
                for size, value in z.items():
                    if not torch.equal(vae.decode(value).sample, expected[size]):
                        wrong.append(size)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_callers_graph_holds_a_run(vae):
    z = latents((64, 96))
    expected = vae.decode(z).sample.clone()
    vae.decode(z)
    torch.cuda.synchronize()
    graph, source = torch.cuda.CUDAGraph(), torch.zeros_like(z)
    with torch.cuda.graph(graph):
        y = vae.decode(source).sample
    vae.release_memory()  # what the graph reads stays
    source.copy_(z)
    graph.replay()
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


def test_a_size_that_has_not_run_is_not_captured(vae):
    vae.decode(latents((64, 96)))
    torch.cuda.synchronize()
    z = latents((96, 64))
    with pytest.raises(ExecutionError, match="captured"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        vae.decode(z)
    torch.cuda.synchronize()
    assert torch.isfinite(vae.decode(z).sample).all()


def test_small_pictures_are_replayed(model):
    eager = load_vae(None, model=model, fallback="raise")
    vae = load_vae(None, model=model, fallback="raise", cuda_graphs=True)
    sizes = [(64, 64), (64, 96), (128, 96)]
    for _ in range(4):
        for seed, size in enumerate(sizes):
            z = latents(size) + seed
            x = picture(size)
            torch.testing.assert_close(vae.decode(z).sample, eager.decode(z).sample, rtol=0, atol=0)
            torch.testing.assert_close(
                vae.encode(x).latent_dist.parameters,
                eager.encode(x).latent_dist.parameters,
                rtol=0,
                atol=0,
            )
    vae.release_memory()
    assert torch.isfinite(vae.decode(latents(sizes[0])).sample).all()


def test_replays_of_several_threads_give_the_same(model):
    vae = load_vae(None, model=model, fallback="raise", cuda_graphs=True)
    sizes = [(64, 64), (64, 96), (128, 96)]
    for _ in range(3):
        expected = {size: vae.decode(latents(size)).sample for size in sizes}
    torch.cuda.synchronize()
    wrong: list[tuple[int, int]] = []

    def work() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                wrong.extend(
                    size
                    for size in sizes
                    if not torch.equal(vae.decode(latents(size)).sample, expected[size])
                )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_offload_takes_the_weights_away_and_brings_them_back(vae):
    z = latents((264, 328))
    expected = vae.decode(z).sample.clone()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    vae.to("cpu")
    assert torch.cuda.memory_allocated() < before
    vae.to("cuda")
    torch.testing.assert_close(vae.decode(z).sample, expected, rtol=0, atol=0)


def test_memory_stays_flat(vae):
    for size in SIZES:
        vae.decode(latents(size))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        for size in SIZES:
            vae.decode(latents(size))
            vae.encode(picture(size))
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_a_new_size_compiles_nothing(vae):
    from triton.runtime.jit import JITFunction

    from qvae_trt.fused import attention, norms, pixels

    def compiled() -> int:
        kernels = [
            value
            for module in (attention, norms, pixels)
            for value in vars(module).values()
            if isinstance(value, JITFunction)
        ]
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    vae.encode(picture((64, 64)))
    vae.decode(latents((64, 64)))
    before = compiled()
    for size in ((8, 8), (16, 128), (136, 120), (264, 328), (1024, 768)):
        vae.encode(picture(size))
        vae.decode(latents(size))
    assert compiled() == before


def test_without_memory_it_is_tiled(vae, monkeypatch):
    z = latents((768, 512))
    expected = vae.decode(z).sample
    real = fused.FusedVae.decode

    def decode(self: fused.FusedVae, x: torch.Tensor) -> torch.Tensor:
        if x.shape[3] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory: a test")
        return real(self, x)

    monkeypatch.setattr(fused.FusedVae, "decode", decode)
    y = vae.decode(z).sample
    assert error(y, expected.float()) < 0.1


def test_a_wrong_kernel_is_seen_at_the_first_use_and_the_folded_network_serves(model, monkeypatch):
    import plain_kernels as plain

    from qvae_trt.fused import kernels

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        return plain.attend(qkv) * 1.5

    monkeypatch.setattr(kernels, "attend", attend)
    vae: TrtVae = load_vae(None, model=model)
    with pytest.warns(FallbackWarning, match="differs from the folded network"):
        y = vae.decode(latents((64, 72))).sample
    assert torch.isfinite(y).all()
    with pytest.raises(BackendError, match="differs"):
        fused.load(model.vae, torch.device("cuda", 0))


def test_gradients_go_through_the_folded_network(model):
    vae = load_vae(None, model=model, fallback="silent", dtype=torch.float32)
    z = latents((64, 64)).requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_devices(model):
    vae = load_vae(None, model=model, fallback="raise")
    z = latents((64, 96))
    first = vae.decode(z).sample.cpu()
    assert torch.equal(vae.decode(z.to("cuda:1")).sample.cpu(), first)


def test_full_width_keeps_a_third_of_the_error_of_bf16():
    model = load_model("random:full")
    vae = load_vae(None, model=model, fallback="raise")
    stock = copy.deepcopy(model.vae).to("cuda")
    x, z = picture((264, 328)), latents((264, 328))
    expected = stock.encode(x).latent_dist.parameters, stock.decode(z).sample
    found = vae.encode(x).latent_dist.parameters, vae.decode(z).sample
    stock.to(torch.bfloat16)
    usual = stock.encode(x.bfloat16()).latent_dist.parameters, stock.decode(z.bfloat16()).sample
    for fused_, bf16, exact in zip(found, usual, expected, strict=True):
        assert error(fused_, exact) < error(bf16, exact) / 3
