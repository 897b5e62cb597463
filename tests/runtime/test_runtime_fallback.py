"""PyTorch where no engine serves: its weights, and its memory."""

from __future__ import annotations

import copy
import tracemalloc
import warnings

import pytest
import torch
from ort_engines import STATIC, tiny

from qvae_trt.errors import DeviceMemoryError, EngineError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.runtime import fallback, pytorch, tiling
from qvae_trt.runtime.cache import Recent
from qvae_trt.runtime.memory import memory_named
from qvae_trt.runtime.vae import load_vae

CPU = torch.device("cpu")
Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)
VIDEO = torch.zeros(1, 16, 2, 8, 8)


@pytest.fixture
def vae(tmp_path):
    """Without engines."""
    return load_vae(tmp_path, model=tiny(), backend="onnxruntime", fallback="silent")


@pytest.mark.parametrize("z", [Z, VIDEO], ids=["picture", "video"])
def test_weights_made_in_inference_mode_serve_gradients(vae, z):
    with torch.inference_mode():
        vae.decode(z)
    z = z.clone().requires_grad_()
    vae.decode(z).sample.sum().backward()
    assert z.grad is not None
    assert float(z.grad.abs().sum()) > 0


@pytest.mark.parametrize("z", [Z, VIDEO], ids=["picture", "video"])
def test_all_weights_are_kept_while_a_stream_reads_them(vae, monkeypatch, z):
    """They are dropped when the VAE moves, perhaps from another stream than the one that reads."""
    read: list[torch.nn.Module] = []
    monkeypatch.setattr(pytorch, "keep_while_read", lambda module, _device: read.append(module))
    vae.decode(z)
    networks = vae._ladder.pytorch
    assert read == [networks._folded if z is Z else networks._video]
    assert read[0] is not None

    kept: list[tuple[int, str]] = []
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: kept.append((id(tensor), stream))
    )
    pytorch.keep_while_read(read[0], torch.device("cuda", 1))
    weights = [*read[0].parameters(), *read[0].buffers()]
    assert kept == [(id(tensor), "stream of cuda:1") for tensor in weights]
    assert len(kept) > 10
    pytorch.keep_while_read(read[0], CPU)
    assert len(kept) == len(weights)


def fail(monkeypatch, where: str, times: int) -> list[int]:
    """Where PyTorch has no memory for so many calls."""
    left = [times]

    def failing(run):
        def full(*given, **options):
            if left[0]:
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(*given, **options)

        return full

    owner, name = {
        "video": (type(tiny().vae), "decode"),
        "the sum of the tiles": (tiling.torch, "zeros"),
        "the batch": (torch, "cat"),
    }[where]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    return left


def arranged(vae, where: str) -> torch.Tensor:
    vae.decode(Z)
    if where == "video":
        vae.decode(VIDEO)
        return VIDEO
    vae.enable_tiling(64, 64)
    return Z.repeat(2, 1, 1, 1, 1) if where == "the batch" else Z


@pytest.mark.parametrize("where", ["video", "the sum of the tiles", "the batch"])
def test_where_pytorch_has_no_memory_room_is_made_once(vae, monkeypatch, where):
    z = arranged(vae, where)
    expected = vae.decode(z).sample
    room: list[torch.device] = []
    monkeypatch.setattr(vae._ladder.engines, "make_room", room.append)
    left = fail(monkeypatch, where, 1)
    torch.testing.assert_close(vae.decode(z).sample, expected, rtol=0, atol=0)
    assert (left, room) == ([0], [CPU])


@pytest.mark.parametrize("where", ["video", "the sum of the tiles", "the batch"])
def test_where_it_still_has_none_that_is_said(vae, monkeypatch, where):
    z = arranged(vae, where)
    left = fail(monkeypatch, where, 1000)
    with pytest.raises(DeviceMemoryError, match="cpu: cannot allocate memory for the decoder of"):
        vae.decode(z)
    assert left == [998]


def test_another_error_of_pytorch_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="illegal"), memory_named(CPU, "memory"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_copy_has_a_place_of_its_own_on_the_same_weights(vae):
    vae.enable_tiling(64, 64)
    twin = copy.deepcopy(vae)
    assert twin._ladder is vae._ladder
    assert twin._model is vae._model
    assert twin.tile_sample_min_height == 64
    torch.testing.assert_close(twin.decode(Z).sample, vae.decode(Z).sample, rtol=0, atol=0)
    twin.disable_tiling()
    twin.to(torch.bfloat16)
    assert (vae.use_tiling, vae.dtype) == (True, torch.float32)
    holder = torch.nn.ModuleList([vae, vae])
    assert len(set(copy.deepcopy(holder).modules())) == 2, "copied once"


@pytest.mark.parametrize("mode", ["warn", "silent"])
def test_what_was_warned_of_takes_no_more_memory_with_every_size(mode):
    notices = fallback.Notices(mode)

    def note(sizes):
        for size in sizes:
            error = EngineError(f"no engine serves {size}x{size}, of all that were looked at")
            notices.note(f"decoder {size}x{size}", error, instead="PyTorch")

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda *_, **__: None  # as one that is printed and forgotten
        note(range(1000))
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        note(range(1000, 5000))
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 200_000, "400 bytes a size, and as much again in Python's registry"


def test_recent_entries_are_kept():
    recent = Recent()
    for i in range(300):
        recent[i] = i
        recent[0] = 0
    assert len(recent) == 256
    assert 0 in recent
    assert 299 in recent
    assert 1 not in recent
