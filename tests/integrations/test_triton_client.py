"""`examples/triton_client.py`, against a Triton of our own that runs the repository's engines."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import onnxruntime
import ort_engines
import pytest
import torch
from PIL import Image

from qvae_trt.images import Latents, write_latents
from qvae_trt.triton_repository import make_repository

ROOT = Path(__file__).resolve().parents[2]


class Input:
    def __init__(self, name, shape, datatype):
        self.name, self.shape, self.datatype = name, tuple(shape), datatype

    def set_data_from_numpy(self, values):
        assert values.shape == self.shape
        assert {"FP32": "float32"}[self.datatype] == values.dtype
        self.values = values


@pytest.fixture
def triton(tmp_path, tmp_path_factory, monkeypatch):
    engines = ort_engines.shared(tmp_path_factory)
    make_repository(engines, tmp_path / "models", backend="onnxruntime")

    class Client:
        def __init__(self, url):
            assert url == "localhost:8000"

        def session(self, model):
            path = tmp_path / "models" / model / "1" / "model.onnx"
            return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def get_model_metadata(self, model):
            session = self.session(model)
            return {
                key: [{"name": tensor.name, "datatype": "FP32"} for tensor in tensors]
                for key, tensors in (
                    ("inputs", session.get_inputs()),
                    ("outputs", session.get_outputs()),
                )
            }

        def infer(self, model, inputs):
            made = self.session(model).run(None, {one.name: one.values for one in inputs})[0]
            answer = ModuleType("answer")
            answer.as_numpy = lambda name: made
            return answer

    http = ModuleType("tritonclient.http")
    http.InferenceServerClient, http.InferInput = Client, Input
    package = ModuleType("tritonclient")
    package.http = http
    monkeypatch.setitem(sys.modules, "tritonclient", package)
    monkeypatch.setitem(sys.modules, "tritonclient.http", http)
    spec = importlib.util.spec_from_file_location(
        "triton_client", ROOT / "examples" / "triton_client.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_normalised_latents_become_the_picture_that_the_vae_makes(triton, tmp_path, monkeypatch):
    vae = ort_engines.tiny().vae
    z = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(2))
    mean = torch.tensor(vae.config.latents_mean).view(1, 16, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, 16, 1, 1, 1)
    write_latents(tmp_path / "z.safetensors", Latents((z - mean) / std, 60, 90))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(dict(vae.config)))
    words = ["x", str(tmp_path / "z.safetensors"), "--out", str(tmp_path / "picture.png")]
    words += ["--model", "qwen_image_vae_decoder_96x64", "--normalised", str(config)]
    monkeypatch.setattr(sys, "argv", words)
    assert triton.main() == 0
    expected = vae.decode(z, return_dict=False)[0].clamp(-1, 1)[0, :, 0, :60, :90]
    with Image.open(tmp_path / "picture.png") as made:
        assert made.size == (90, 60)
        pixels = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8).view(60, 90, 3)
    found = pixels.permute(2, 0, 1).float() / 127.5 - 1
    assert (found - expected).abs().max() < 0.02


def test_a_batch_goes_picture_by_picture(triton):
    z = torch.randn(3, 16, 1, 8, 12, generator=torch.Generator().manual_seed(3))
    import tritonclient.http

    client = tritonclient.http.InferenceServerClient("localhost:8000")
    pixels = triton.decode(client, "qwen_image_vae_decoder_profiles", z)
    expected = ort_engines.tiny().vae.decode(z, return_dict=False)[0].clamp(-1, 1)
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)
