"""`examples/server.py`: what it answers, what it refuses, how it ends; the load on it."""

from __future__ import annotations

import io
import json
import signal
import socket
import threading
from collections import Counter
from http.client import HTTPResponse
from pathlib import Path

import ort_engines
import pytest
import server_load
import torch
from PIL import Image
from safetensors.torch import load as load_tensors

from qvae_trt.images import Latents, write_latents
from qvae_trt.profiles import Resolution

SIZE = Resolution(64, 64)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return ort_engines.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def asked(engines):
    with server_load.server(engines, "--queue", "4") as made:
        yield made


@pytest.fixture
def work(tmp_path):
    return server_load.requests(tmp_path, [SIZE])


def test_a_picture_becomes_latents_and_latents_a_picture(asked, work):
    (_, picture), (_, latents) = work
    status, body = asked.ask("POST", "/encode", picture)
    assert status == 200
    assert load_tensors(body)["latents"].shape == (1, 16, 1, 8, 8)
    status, again = asked.ask("POST", "/decode", body)
    assert status == 200
    with Image.open(io.BytesIO(again)) as made, Image.open(io.BytesIO(picture)) as given:
        assert (made.format, made.size) == ("PNG", given.size)
    x = load_tensors(latents)["latents"]
    expected = ort_engines.tiny().vae.decode(x, return_dict=False)[0][0, :, 0]
    expected = (expected.clamp(-1, 1) + 1) / 2 * 255
    _, body = asked.ask("POST", "/decode", latents)
    with Image.open(io.BytesIO(body)) as made:
        pixels = torch.frombuffer(bytearray(made.tobytes()), dtype=torch.uint8)
    found = pixels.view(64, 64, 3).permute(2, 0, 1).float()
    assert (found - expected).abs().max() <= 1


def test_a_size_of_its_own_is_padded_and_cut(asked):
    png = io.BytesIO()
    Image.new("RGB", (50, 37), "teal").save(png, "PNG")
    status, body = asked.ask("POST", "/encode", png.getvalue())
    assert status == 200
    _, body = asked.ask("POST", "/decode", body)
    with Image.open(io.BytesIO(body)) as made:
        assert made.size == (50, 37)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/encode", b"no picture", 400, "no picture that can be read"),
        ("/encode", b"", 400, "empty"),
        ("/decode", b"no latents", 400, "cannot be read as safetensors"),
        ("/other", b"", 404, "/decode or /encode"),
    ],
)
def test_bad_input_is_refused_in_words(asked, path, body, status, word):
    found, said = asked.ask("POST", path, body)
    assert found == status
    assert word in json.loads(said)["error"]
    assert "/tmp" not in json.loads(said)["error"]


def test_latents_of_another_shape_are_refused(asked, tmp_path):
    path = tmp_path / "latents.safetensors"
    write_latents(path, Latents(torch.zeros(1, 3, 1, 8, 8), 64, 64))
    found, said = asked.ask("POST", "/decode", path.read_bytes())
    assert (found, "expected" in json.loads(said)["error"]) == (400, True)
    for height, width in ((8 * 257, 8 * 256), (1, 1)):
        write_latents(path, Latents(torch.zeros(1, 16, 1, 257, 256), height, width))
        found, said = asked.ask("POST", "/decode", path.read_bytes())
        assert (found, "too large" in json.loads(said)["error"]) == (400, True)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("", 411),
        ("Content-Length: many\r\n", 411),
        ("Content-Length: -1\r\n", 411),
        ("Content-Length: 99999999999\r\n", 413),
        ("Content-Length: 10\r\n", 400),
    ],
)
def test_a_wrong_length_is_refused(asked, header, status):
    with socket.create_connection(("127.0.0.1", asked.port), timeout=30) as client:
        client.sendall(f"POST /encode HTTP/1.0\r\n{header}\r\n".encode())
        client.shutdown(socket.SHUT_WR)
        answer = HTTPResponse(client)
        answer.begin()
        assert answer.status == status


def test_more_than_the_queue_holds_are_told_to_come_back(asked, work):
    """Of 24 at once each gets an answer; the server goes on."""
    found: list[int] = []
    start = threading.Barrier(24)

    def client() -> None:
        start.wait()
        found.append(asked.ask("POST", *work[0])[0])

    threads = [threading.Thread(target=client) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = Counter(found)
    assert counts[200] >= 4
    assert counts[503] >= 1
    assert counts[200] + counts[503] == 24
    status, said = asked.ask("GET", "/health")
    assert status == 200
    assert json.loads(said)["answers"]["503"] >= counts[503]
    assert json.loads(said)["memory"]["engines"] >= 1


def test_it_listens_on_this_machine_alone(asked):
    port = f"{asked.port:04X}"
    lines = Path(f"/proc/{asked.process.pid}/net/tcp").read_text().splitlines()
    listening = [words[1] for words in map(str.split, lines) if words[3] == "0A"]
    assert [place for place in listening if place.endswith(port)] == [f"0100007F:{port}"]


def test_on_sigterm_it_answers_whom_it_has(engines, work):
    """Those that are inside, and those that wait for a thread, all get their pictures."""
    with server_load.server(engines) as asked:
        asked.ask("POST", *work[0])
        clients = []
        path, body = work[0]
        for _ in range(6):
            client = socket.create_connection(("127.0.0.1", asked.port), timeout=30)
            client.sendall(f"POST {path} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            client.sendall(body)
            clients.append(client)
        asked.process.send_signal(signal.SIGTERM)
        for client in clients:
            answer = HTTPResponse(client)
            answer.begin()
            assert answer.status == 200
            assert load_tensors(answer.read())["latents"].shape == (1, 16, 1, 8, 8)
            client.close()
        said, _ = asked.process.communicate(timeout=60)
        assert asked.process.returncode == 0
        assert json.loads(said) == {"answers": {"200": 7}}
        with pytest.raises(ConnectionRefusedError):
            asked.ask("GET", "/health")


def test_weights_that_cannot_be_had_end_it_in_words(tmp_path):
    with pytest.raises(RuntimeError, match="has not started: '', 1"):
        server_load.Server(tmp_path, "--model", "random:no")


@pytest.mark.parametrize(
    ("seconds", "warm_up"),
    [(2, 1), pytest.param(300, 30, marks=pytest.mark.slow, id="five minutes")],
)
def test_no_request_is_lost_under_load(engines, seconds, warm_up):
    found = server_load.load(engines, seconds=seconds, warm_up=warm_up)
    if seconds < 60:  # too short to say anything of memory
        found |= {"rss_within_percent": 0}
    assert server_load.failures(found) == []
    assert found["requests"] >= seconds
