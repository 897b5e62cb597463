"""QvaeImageProcessor gives, bit for bit, the pictures of diffusers' VaeImageProcessor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import qvae_trt
from qvae_trt.runtime import image_processor as module
from qvae_trt.runtime.image_processor import QvaeImageProcessor, to_uint8

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [(1, 3, 16, 24), (3, 3, 8, 8), (1, 4, 16, 8), (2, 4, 9, 7), (2, 1, 8, 12), (1, 3, 1, 1)]


def pixels(shape: tuple[int, ...], dtype: torch.dtype, device: str = "cpu") -> torch.Tensor:
    """Values all over [-1.2, 1.2], with every exact eighth-bit boundary among them."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2.4 - 1.2
    edges = (torch.arange(511) / 510 * 2 - 1).repeat(x.numel() // 1022 + 1)[: x.numel() // 2]
    x.view(-1)[: len(edges)] = edges
    return x.to(device, dtype)


def same(ours: list[Image.Image], theirs: list[Image.Image]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.mode, one.size) == (other.mode, other.size)
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pictures_are_bit_identical(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = pixels(shape, dtype)
    before = x.clone()
    same(QvaeImageProcessor().postprocess(x), VaeImageProcessor().postprocess(x))
    assert torch.equal(x, before), "the caller's tensor was written to"


def test_every_value_of_half_precision() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every.view(dtype)
        x = x[torch.isfinite(x)]
        x = x[: len(x) // 3 * 3].reshape(1, 3, 1, -1)
        same(QvaeImageProcessor().postprocess(x), VaeImageProcessor().postprocess(x))


@pytest.mark.parametrize("flags", [[True, False, True], [False] * 3, [True] * 3])
def test_denormalising_some_of_the_batch(flags: list[bool]) -> None:
    x = pixels((3, 3, 8, 8), torch.float32).abs().clamp(0, 1)
    ours = QvaeImageProcessor().postprocess(x, do_denormalize=flags)
    same(ours, VaeImageProcessor().postprocess(x, do_denormalize=flags))


def test_without_normalisation() -> None:
    x = pixels((2, 3, 8, 8), torch.float32)  # values outside [0, 1] wrap, as NumPy's do
    ours, theirs = (kind(do_normalize=False) for kind in (QvaeImageProcessor, VaeImageProcessor))
    same(ours.postprocess(x), theirs.postprocess(x))


@pytest.mark.parametrize("kind", ["pt", "np", "latent"])
def test_other_outputs_are_inherited(kind: str) -> None:
    x = pixels((2, 3, 8, 8), torch.bfloat16)
    ours = QvaeImageProcessor().postprocess(x, output_type=kind)
    theirs = VaeImageProcessor().postprocess(x, output_type=kind)
    assert type(ours) is type(theirs)
    assert np.array_equal(np.asarray(ours.tolist()), np.asarray(theirs.tolist()))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded", "grad"])
def test_memory_layouts(layout: str) -> None:
    x = pixels((2, 3, 8, 12), torch.float32)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x.repeat(1, 1, 2, 2)[:, :, ::2, ::2]
    elif layout == "expanded":
        x = x[:1].expand(2, -1, -1, -1)
    expected = VaeImageProcessor().postprocess(x)
    same(QvaeImageProcessor().postprocess(x.requires_grad_(layout == "grad")), expected)


def test_what_diffusers_refuses_is_refused() -> None:
    for wrong in (np.zeros((1, 3, 8, 8)), [torch.zeros(1, 3, 8, 8)], None):
        with pytest.raises(ValueError, match="incorrect format"):
            QvaeImageProcessor().postprocess(wrong)
    with pytest.raises(RuntimeError):
        QvaeImageProcessor().postprocess(torch.zeros(3, 8, 8))


def test_pictures_can_be_changed_and_outlive_the_tensor() -> None:
    x = pixels((2, 4, 8, 8), torch.float32)
    pictures = QvaeImageProcessor().postprocess(x)
    second = pictures[1].tobytes()
    x.zero_()
    pictures[0].putpixel((0, 0), (1, 2, 3, 4))
    assert pictures[0].getpixel((0, 0)) == (1, 2, 3, 4)
    assert pictures[1].tobytes() == second


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_keep_nothing_of_the_pinned_buffer(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffers: list[np.ndarray] = []

    def lend(values: torch.Tensor) -> np.ndarray:
        buffers.append(values.numpy().copy())
        return buffers[-1]

    monkeypatch.setattr(module, "to_host", lend)
    x = pixels((2, channels, 8, 8), torch.float32)
    pictures = QvaeImageProcessor().postprocess(x)
    buffers[0][:] = 0  # the next call takes the buffer
    same(pictures, VaeImageProcessor().postprocess(x))


def test_preprocessing_is_inherited() -> None:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8))
    ours, theirs = (kind(vae_scale_factor=16) for kind in (QvaeImageProcessor, VaeImageProcessor))
    assert torch.equal(ours.preprocess(picture), theirs.preprocess(picture))
    assert torch.equal(ours.preprocess(picture, 32, 48), theirs.preprocess(picture, 32, 48))


def test_it_takes_the_configuration_of_the_one_that_it_replaces() -> None:
    theirs = VaeImageProcessor(vae_scale_factor=16, do_normalize=False, resample="bilinear")
    ours = QvaeImageProcessor.replacing(theirs)
    public = [{k: v for k, v in p.config.items() if k[0] != "_"} for p in (ours, theirs)]
    assert public[0] == public[1]
    assert public[0]["resample"] == "bilinear"
    assert isinstance(ours, VaeImageProcessor)


def test_it_is_a_public_name() -> None:
    assert qvae_trt.QvaeImageProcessor is QvaeImageProcessor


def test_uint8_is_contiguous_with_channels_last() -> None:
    x = torch.tensor([0.0, 0.5 / 255, 1.5 / 255, 1.0]).reshape(1, 1, 2, 2).repeat(1, 3, 1, 1)
    y = to_uint8(x)
    assert (y.shape, y.dtype, y.is_contiguous()) == ((1, 2, 2, 3), torch.uint8, True)
    assert y[0, :, :, 0].flatten().tolist() == [0, 0, 2, 255]  # half to even


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 1328, 1328)], ids=str)
def test_pictures_from_a_gpu_are_bit_identical(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = pixels(shape, dtype, "cuda")
    same(QvaeImageProcessor().postprocess(x), VaeImageProcessor().postprocess(x))


@pytest.mark.gpu
def test_pictures_from_a_side_stream() -> None:
    x = pixels((1, 3, 512, 512), torch.float16, "cuda")
    expected = VaeImageProcessor().postprocess(x)
    late = torch.zeros_like(x)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)  # some 50 ms: whoever does not wait sees the zeros
        late.copy_(x)
        same(QvaeImageProcessor().postprocess(late), expected)


@pytest.mark.gpu
def test_a_gpu_picture_takes_under_8_ms() -> None:
    import statistics
    import time

    x = pixels((1, 3, 1328, 1328), torch.bfloat16, "cuda")
    processor, times = QvaeImageProcessor(), []
    for _ in range(30):
        torch.cuda.synchronize()
        start = time.perf_counter()
        processor.postprocess(x)
        times.append((time.perf_counter() - start) * 1e3)
    assert statistics.median(times[5:]) < 8
