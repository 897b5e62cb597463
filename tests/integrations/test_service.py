"""`examples/serve/service.py`: what is answered, what is refused, what operators are told.

How `app.py` serves it with Ray is in `test_serve.py`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
import sys
from pathlib import Path

import ort_engines
import pytest
import server_load
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

import qvae_trt
from qvae_trt.errors import DeviceMemoryError, ExecutionError
from qvae_trt.images import Latents, write_latents
from qvae_trt.profiles import Resolution

SERVICE = Path(__file__).resolve().parents[2] / "examples" / "serve" / "service.py"
STATUS = {
    "served": [{"part": "decoder", "size": "96x64", "by": "static", "calls": 3}],
    "fallbacks": [
        {"where": "decoder 8x8", "instead": None, "reason": 'no "file"\nmore', "calls": 1}
    ],
    "engines": [{"path": "e.trt", "device": "cuda:0", "bytes": 10}],
    "memory": {"cuda:0": {"engine_bytes": 10, "scratch_bytes": 1 << 30}},
}


@pytest.fixture(scope="module")
def serving():
    spec = importlib.util.spec_from_file_location("qvae_service", SERVICE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["qvae_service"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def service(serving, tmp_path_factory):
    options = {"model": "bundled:tiny", "backend": "onnxruntime", "fallback": "silent"}
    engines = ort_engines.shared(tmp_path_factory)
    return serving.Service(lambda: qvae_trt.load_vae(engines, **options))


@pytest.fixture
def work(tmp_path):
    return server_load.requests(tmp_path, [Resolution(64, 64)])


def error_of(answer) -> str:
    return json.loads(answer.body)["error"]


def test_a_picture_becomes_latents_and_latents_a_picture(service, work):
    (_, picture), (_, latents) = work
    answer = service.answer("/encode", picture)
    assert (answer.status, answer.media_type) == (200, "application/octet-stream")
    assert load_tensors(answer.body)["latents"].shape == (1, 16, 1, 8, 8)
    again = service.answer("/decode", answer.body)
    assert (again.status, again.media_type) == (200, "image/png")
    with Image.open(io.BytesIO(again.body)) as made, Image.open(io.BytesIO(picture)) as given:
        assert (made.format, made.size) == ("PNG", given.size)
    x = load_tensors(latents)["latents"]
    expected = ort_engines.tiny().vae.decode(x, return_dict=False)[0][0, :, 0]
    expected = (expected.clamp(-1, 1) + 1) / 2 * 255
    with Image.open(io.BytesIO(service.answer("/decode", latents).body)) as made:
        pixels = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    found = pixels.view(64, 64, 3).permute(2, 0, 1).float()
    assert (found - expected).abs().max() <= 1


def test_a_size_of_its_own_is_padded_and_cut(service):
    png = io.BytesIO()
    Image.new("RGB", (50, 37), "teal").save(png, "PNG")
    latents = service.answer("/encode", png.getvalue()).body
    with Image.open(io.BytesIO(service.answer("/decode", latents).body)) as made:
        assert made.size == (50, 37)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/encode", b"no picture", "no picture that can be read"),
        ("/encode", b"", "empty"),
        ("/decode", b"no latents", "cannot be read as safetensors"),
    ],
)
def test_bad_input_is_refused_in_words(service, path, body, word):
    answer = service.answer(path, body)
    assert answer.status == 400
    assert word in error_of(answer)
    assert "/tmp" not in error_of(answer)


def test_latents_of_another_shape_are_refused(service, tmp_path):
    path = tmp_path / "latents.safetensors"
    write_latents(path, Latents(torch.zeros(1, 3, 1, 8, 8), 64, 64))
    answer = service.answer("/decode", path.read_bytes())
    assert (answer.status, "expected" in error_of(answer)) == (400, True)
    for height, width in ((8 * 257, 8 * 256), (1, 1)):
        write_latents(path, Latents(torch.zeros(1, 16, 1, 257, 256), height, width))
        answer = service.answer("/decode", path.read_bytes())
        assert (answer.status, "too large" in error_of(answer)) == (400, True)


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (DeviceMemoryError("no memory"), 503, {"Retry-After": "5"}),
        (ExecutionError("the engine failed"), 500, {}),
        (ValueError("a secret"), 500, {}),
    ],
)
def test_what_fails_inside_is_said_without_its_insides(serving, work, error, status, headers):
    class Broken:
        def encode(self, *_, **__):
            raise error

    broken = serving.Service(Broken)
    answer = broken.answer(*work[0])
    assert (answer.status, answer.headers) == (status, headers)
    assert "secret" not in error_of(answer)


def test_what_was_done_is_counted(serving, service, work, monkeypatch):
    monkeypatch.setattr(serving, "status_of", lambda vae: {})
    before = service.snapshot()
    service.answer(*work[0])
    service.answer("/encode", b"")
    after = json.loads(json.dumps(service.snapshot()))
    assert after["runs"]["/encode"] == before["runs"].get("/encode", 0) + 1
    assert after["run_seconds"]["/encode"] > before["run_seconds"].get("/encode", 0)
    assert after["load_seconds"] > 0


def test_metrics_are_as_prometheus_reads_them(serving):
    snapshot = {"load_seconds": 1.5, "runs": {"/decode": 3}, "run_seconds": {"/decode": 0.25}}
    text = serving.prometheus(serving.samples("a", snapshot | {"vae": STATUS}))
    lines = text.splitlines()
    assert text.endswith("\n")
    pair = r'[a-z_]+="(?:[^"\\\n]|\\["\\n])*"'
    for line in lines:
        assert line.startswith(("# HELP ", "# TYPE ")) or re.fullmatch(
            rf"[a-z_]+\{{{pair}(?:,{pair})*\}} [0-9.e+]+", line
        )
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert len(typed) == len(set(typed)) and set(typed) <= set(serving.METRICS)
    assert 'qvae_served_total{replica="a",part="decoder",size="96x64",by="static"} 3' in lines
    fallback = (
        'qvae_fallbacks_total{replica="a",where="decoder 8x8",instead="",reason="no \\"file\\""} 1'
    )
    assert fallback in lines
    assert 'qvae_memory_bytes{replica="a",device="cuda:0",kind="scratch"} 1073741824' in lines
    assert 'qvae_run_seconds_total{replica="a",path="/decode"} 0.25' in lines
