"""`examples/serve/app.py`: what it promises when Ray serves it, and the load on it.

Ray is a hundred megabytes that nothing else here needs, so these are slow tests, and skipped where
it is not installed: pip install 'ray[serve]'. What is answered is in `test_service.py`.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
import urllib.request
from collections import Counter
from http.client import HTTPResponse
from pathlib import Path

import ort_engines
import pytest
import server_load
from safetensors.torch import load as load_tensors

from qvae_trt.profiles import Resolution

pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    return ort_engines.shared(tmp_path_factory)


@pytest.fixture(scope="module")
def asked(engines):
    with server_load.server(engines, "--queue", "4", "--replicas", "2") as made:
        yield made


@pytest.fixture
def work(tmp_path):
    return server_load.requests(tmp_path, [Resolution(64, 64)])


def test_both_ways_are_answered(asked, work):
    for path, body in work:
        status, made = asked.ask("POST", path, body)
        assert status == 200
    assert made[:4] == b"\x89PNG"
    status, said = asked.ask("POST", "/encode", b"no picture")
    assert (status, "no picture that can be read" in json.loads(said)["error"]) == (400, True)
    status, said = asked.ask("POST", "/other", b"")
    assert (status, "/decode or /encode" in json.loads(said)["error"]) == (404, True)


@pytest.mark.parametrize(
    ("header", "status"),
    [("", 411), ("Content-Length: 99999999999\r\n", 413), ("Content-Length: many\r\n", 400)],
)
def test_a_wrong_length_is_refused(asked, header, status):
    with socket.create_connection(("127.0.0.1", asked.port), timeout=30) as client:
        client.sendall(f"POST /encode HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
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
    assert 1 <= len(json.loads(said)["replicas"]) <= 2


def test_metrics_say_what_served(asked, work):
    asked.ask("POST", *work[1])
    with urllib.request.urlopen(f"http://127.0.0.1:{asked.port}/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = answer.read().decode().splitlines()
    served = [line for line in lines if line.startswith("qvae_served_total")]
    assert any('part="decoder",size="64x64",by="profiles"' in line for line in served)
    assert any(
        line.startswith('qvae_requests_total{path="/decode",status="200"}') for line in lines
    )


def test_it_listens_on_this_machine_alone(asked):
    port = f"{asked.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()
    listening = [words[1] for words in map(str.split, lines) if words[3] == "0A"]
    assert {place for place in listening if place.endswith(f":{port}")} == {f"0100007F:{port}"}


def test_on_sigterm_it_answers_whom_it_has(engines, work):
    """Those that are inside, and those that wait for a replica, all get their pictures."""
    with server_load.server(engines) as asked:
        asked.ask("POST", *work[0])
        clients = []
        path, body = work[0]
        for _ in range(6):
            client = socket.create_connection(("127.0.0.1", asked.port), timeout=30)
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            clients.append(client)
        while len(clients) > asked.inside():
            pass
        asked.process.send_signal(signal.SIGTERM)
        for client in clients:
            answer = HTTPResponse(client)
            answer.begin()
            assert answer.status == 200
            assert load_tensors(answer.read())["latents"].shape == (1, 16, 1, 8, 8)
            client.close()
        said, _ = asked.process.communicate(timeout=120)
        assert asked.process.returncode == 0
        assert json.loads(said.splitlines()[-1])["answers"]["200"] >= 7
        with pytest.raises(ConnectionRefusedError):
            asked.ask("GET", "/health")


def test_weights_that_cannot_be_had_end_it_in_words(tmp_path):
    with pytest.raises(RuntimeError, match="has not started: '', 1"):
        server_load.Server(tmp_path, "--model", "random:no")


@pytest.mark.parametrize(("seconds", "warm_up"), [(300, 30)], ids=["five minutes"])
def test_no_request_is_lost_under_load(engines, seconds, warm_up):
    found = server_load.load(engines, seconds=seconds, warm_up=warm_up)
    assert server_load.failures(found) == []
    assert found["requests"] >= seconds
