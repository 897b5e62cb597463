"""Inside a caller's CUDA graph nothing is loaded, closed or held against an engine."""

from __future__ import annotations

import shutil
import threading
import warnings

import pytest
import torch
from doubles import Faulty
from ort_engines import STATIC, tiny

from qvae_trt import backends
from qvae_trt.errors import DeviceMemoryError, ExecutionError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.runtime import engines, ladder
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.graphs import captures
from qvae_trt.runtime.vae import load_vae

Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)


class Capture:
    """Whether the current stream is being captured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        for module in (engines, ladder):
            monkeypatch.setattr(module, "capturing", lambda _x: self.on)


@pytest.fixture
def capture(monkeypatch):
    return Capture(monkeypatch)


@pytest.fixture
def backend():
    return Faulty(backends.get("onnxruntime"))


@pytest.fixture
def vae(engine_dir, backend):
    return load_vae(engine_dir, model=tiny(), backend=backend, fallback="warn")


def test_nothing_is_loaded_inside(vae, backend, capture):
    capture.on = True
    with pytest.raises(ExecutionError, match="cannot be loaded while a CUDA graph is captured"):
        vae.decode(Z)
    assert backend.opened == []


def test_an_engine_that_was_replaced_is_not_used_inside(engine_dir, backend, capture, tmp_path):
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    vae = load_vae(tmp_path, model=tiny(), backend=backend, fallback="raise")
    vae.decode(Z)
    (tmp_path / "static/96x64/vae_decoder.onnx").touch()
    capture.on = True
    with pytest.raises(ExecutionError, match="cannot be loaded while a CUDA graph is captured"):
        vae.decode(Z)
    assert backend.live == 1, "closing would void the capture"
    capture.on = False
    vae.decode(Z)
    assert (len(backend.opened), backend.live) == (2, 1)


@pytest.mark.parametrize("error", [ExecutionError("no"), DeviceMemoryError("none left")])
def test_what_goes_wrong_inside_is_raised_and_not_held_against_the_engine(
    vae, backend, capture, error
):
    expected = vae.decode(Z).sample
    capture.on = True

    def fault(what, _path):
        raise error

    backend.fault, sound = fault, backend.fault
    for _ in range(4):  # more often than an engine may fail in a row
        with pytest.raises(type(error)):
            vae.decode(Z)
        assert backend.live == 1, "closing would void the capture"
    capture.on, backend.fault = False, sound
    torch.testing.assert_close(vae.decode(Z).sample, expected, rtol=0, atol=0)
    assert len(backend.opened) == 1


def test_the_budget_waits_until_the_capture_is_over(engine_dir, backend, capture):
    one = (engine_dir / "static/96x64/vae_decoder.onnx").stat().st_size
    vae = load_vae(
        engine_dir, model=tiny(), backend=backend, fallback="raise", memory_budget_bytes=one
    )
    vae.decode(Z)
    cache, _ = vae._ladder.engines._place(Z.device)
    cache._budget_bytes = 0
    capture.on = True
    vae.decode(Z)
    assert backend.live == 1
    capture.on = False
    vae.decode(Z)
    assert backend.live == 0


def test_no_memory_for_input_or_output_is_a_fallback_as_any_other(vae, backend, monkeypatch):
    def full(_engine: Engine) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Engine, "_output", full)
    with pytest.warns(FallbackWarning, match="memory for input and output of vae_dec"):
        y = vae.decode(Z).sample
    torch.testing.assert_close(y, tiny().vae.decode(Z).sample, atol=1e-4, rtol=0)
    assert len(backend.opened) == 2, "tried again after room was made"
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        vae.decode(Z)
    assert len(backend.opened) == 2, "memory came back: the engine was not given up"


@pytest.mark.parametrize("what", ["tiles", "PyTorch", "video"])
def test_what_would_void_the_capture_is_refused(vae, capture, what):
    vae.decode(Z)
    z = {"tiles": Z, "PyTorch": torch.zeros(1, 16, 1, 2, 24), "video": Z.repeat(1, 1, 2, 1, 1)}
    if what == "tiles":
        vae.enable_tiling(64, 64)
    capture.on = True
    with pytest.raises(ExecutionError, match=f"{what} cannot" if what == "tiles" else "PyTorch"):
        vae.decode(z[what])
    assert vae._ladder.pytorch._folded is None
    assert vae._ladder.pytorch._video is None


@pytest.mark.parametrize("what", ["loading", "closing"])
def test_loading_and_closing_wait_for_a_capture(vae, backend, what):
    """Of another thread: TensorRT waits for the device there, which would void the capture."""
    if what == "closing":
        vae.decode(Z)
    use = vae.release_memory if what == "closing" else lambda: vae.decode(Z)
    done = threading.Event()

    def other() -> None:
        use()
        done.set()

    with captures.one() as alone:
        assert alone
        user = threading.Thread(target=other, daemon=True)
        user.start()
        assert not done.wait(0.5)
        assert backend.live == (1 if what == "closing" else 0)
    assert done.wait(30)
    assert backend.live == (0 if what == "closing" else 1)
