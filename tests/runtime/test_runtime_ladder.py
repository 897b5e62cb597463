"""From `TrtVae.decode` to the engine: how far it is, what is carried, and what is counted."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from doubles import Faulty
from ort_engines import STATIC, tiny

from qvae_trt import backends, store
from qvae_trt.errors import EngineError, ExecutionError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.runtime import engines as engines_module
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.vae import load_vae

Z = torch.randn(
    (1, 16, 1, *QWEN_IMAGE.latents_of(STATIC)), generator=torch.Generator().manual_seed(0)
)
WIDE = torch.zeros(1, 16, 1, 16, 20)  # 160x128: a profile's
NO_ENGINE = torch.zeros(1, 16, 1, 2, 24)  # 192x16: no engine's


@pytest.fixture
def backend():
    return Faulty(backends.get("onnxruntime"))


@pytest.mark.parametrize(
    "z", [Z, WIDE, Z.repeat(2, 1, 1, 1, 1)], ids=["static", "profile", "batch"]
)
def test_ten_frames_from_decode_to_the_backend(engine_dir, backend, z):
    frames: list[str] = []

    def fault(what, _path):
        if what == "execute":
            frame = sys._getframe(1)  # the session's
            frames.clear()
            while frame.f_code.co_qualname != "TrtVae.decode":
                frames.append(frame.f_code.co_qualname)
                frame = frame.f_back
            frames.append("TrtVae.decode")

    backend.fault = fault
    load_vae(engine_dir, model=tiny(), backend=backend, fallback="raise").decode(z)
    assert 2 < len(frames) <= 10, frames
    named_run = [name for name in frames if name.rpartition(".")[2].strip("_") == "run"]
    assert named_run == ["Engine.run"]


def test_what_fails_for_one_picture_is_not_tried_for_the_next_of_its_batch(engine_dir, backend):
    """A batch is one call: its failures are one strike, and one reason."""
    runs: list[str] = []

    def fault(what, path):
        if what == "execute":
            runs.append(path.parent.name)
            if path.parent.name == str(STATIC):
                raise ExecutionError("no")

    backend.fault = fault
    vae = load_vae(engine_dir, model=tiny(), backend=backend, fallback="silent")
    y = vae.decode(Z.repeat(3, 1, 1, 1, 1)).sample
    torch.testing.assert_close(y[2:], tiny().vae.decode(Z).sample, atol=1e-4, rtol=0)
    assert runs == [str(STATIC), *["profiles"] * 3]


# --- status
# -----------------------------------------------------------------------------------------


def test_the_status_says_what_served_how_often_and_why_not(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="silent")
    empty = vae.status()
    assert (empty["served"], empty["fallbacks"], empty["engines"]) == ([], [], [])
    for z in (Z, Z, WIDE, NO_ENGINE):
        vae.decode(z)
    vae.encode(torch.zeros(2, 3, 1, 64, 96))
    status = vae.status()
    assert json.loads(json.dumps(status)) == status
    assert (status["device"], status["dtype"]) == ("cpu", "float32")
    served = {(s["part"], s["size"], s["by"]): s["calls"] for s in status["served"]}
    assert served == {
        ("decoder", "96x64", "static"): 2,
        ("decoder", "160x128", "profiles"): 1,
        ("decoder", "192x16", "folded"): 1,
        ("encoder", "96x64", "static"): 2,
    }
    (fallback,) = status["fallbacks"]
    assert (fallback["where"], fallback["instead"], fallback["calls"]) == (
        "decoder 192x16",
        "PyTorch",
        1,
    )
    assert "no engine serves it" in fallback["reason"]
    held = sum(engine["bytes"] for engine in status["engines"])
    assert len(status["engines"]) == 3
    assert all(engine["path"].startswith(str(engine_dir)) for engine in status["engines"])
    assert status["memory"]["cpu"] == {
        "engine_bytes": held,
        "scratch_bytes": 0,
        "pytorch_bytes": 0,
    }
    vae.release_memory()
    assert vae.status()["engines"] == []
    assert vae.status()["served"] == status["served"], "counted since it was made"


def test_video_tiles_and_what_was_raised_are_counted(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="silent")
    vae.decode(Z.repeat(1, 1, 2, 1, 1))
    vae.enable_tiling(128, 128)
    vae.decode(torch.zeros(1, 16, 1, 16, 20))
    served = {(s["size"], s["by"]): s["calls"] for s in vae.status()["served"]}
    assert served == {
        ("96x64", "pytorch"): 1,
        ("128x128", "profiles"): 2,
        ("160x128", "tiles"): 1,
    }
    strict = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="raise")
    with pytest.raises(EngineError):
        strict.decode(NO_ENGINE)
    (raised,) = strict.status()["fallbacks"]
    assert raised["instead"] is None


def test_the_status_keeps_no_more_with_every_size_and_takes_threads(tmp_path):
    vae = load_vae(tmp_path, model=tiny(), backend="onnxruntime", fallback="silent")
    served = vae._ladder.served

    def count(start):
        for i in range(500):
            served.add(("decoder", f"{8 * (i % 100)}x{start}", "folded"))
            vae.status()

    threads = [threading.Thread(target=count, args=(0,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {s["calls"] for s in vae.status()["served"]} == {20}, "none is lost"
    for i in range(1000):
        served.add(("decoder", f"8x{i}", "folded"))
    assert len(vae.status()["served"]) == 256


def test_a_vae_says_in_a_line_what_it_is_and_did(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="silent")
    assert repr(vae).startswith("TrtVae(cpu, float32; served: nothing yet; fallbacks: 0;")
    for z in (Z, Z, NO_ENGINE):
        vae.decode(z)
    text = repr(vae)
    assert "served: static 2, folded 1; fallbacks: 1; engines: 1," in text
    assert "\n" not in text


# --- several devices
# ----------------------------------------------------------------------------------


class OnShelf:
    """What an engine loaded on a device looks like to what keeps it."""

    sidecar, captured, bytes = object(), False, 1

    def __init__(self, path, device):
        self.path, self.device, self.ran, self.closed = path, device, 0, False
        self.files = store.signature(path)

    def run(self, x, *, profile):
        assert x.device == self.device
        self.ran += 1
        return x

    def close(self):
        self.closed = True


def test_each_device_of_a_process_has_engines_of_its_own(engine_dir, monkeypatch):
    opened: list[OnShelf] = []

    def open_(engine, _wanted, *, device, **_options):
        opened.append(OnShelf(engine.path, device))
        return opened[-1]

    monkeypatch.setattr(engines_module.Engine, "open", open_)
    engines = Engines({"static": engine_dir / "static"}, backend="onnxruntime", weights_sha256=None)
    devices = [torch.device("cuda", i) for i in (0, 1)]
    inputs = [SimpleNamespace(device=device, is_cuda=False) for device in devices]
    chosen = engines.choose("decoder", STATIC)
    for _ in range(2):
        for x in inputs:
            assert engines.serve("decoder", chosen, x) is x
    assert [(engine.device, engine.ran) for engine in opened] == [(d, 2) for d in devices]
    assert list(engines.loaded()) == devices
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    engines.make_room(devices[1])
    assert [engine.closed for engine in opened] == [False, True]


def test_engines_of_another_device_are_not_said_to_serve(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime")
    assert vae.choice("decoder", STATIC).engine == "static"
    choice = vae.to("meta").choice("decoder", STATIC)
    assert choice.engine == "folded"
    assert "engines run on cpu here, the input is on meta" in choice.explain()
    vae._hf_hook = SimpleNamespace(execution_device="cpu")  # as accelerate leaves an offloaded one
    assert vae.choice("decoder", STATIC).engine == "static"


def test_a_model_without_a_name_has_a_place_in_the_hint(tmp_path):
    folder = tmp_path / "engines"
    folder.mkdir()
    model = replace(tiny(), source="")
    vae = load_vae(folder, model=model, backend="onnxruntime", fallback="raise")
    with pytest.raises(EngineError) as caught:
        vae.decode(NO_ENGINE)
    assert "--model MODEL " in str(caught.value.fix)
