"""Load `examples/serve/app.py` with client threads, and watch the memory of its replica.

    python tests/server_load.py --seconds 300 [--out benchmarks/reliability/load.json]

The engines are small ones of the bundled VAE, run by ONNX Runtime on the CPU. Each answer must say
the same as the first answer to the same request.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import ort_engines
import torch
from PIL import Image

from qvae_trt.images import Latents, write_latents
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parent.parent
#: Served by a static engine, by a profile, and by PyTorch.
SIZES = (Resolution(64, 96), Resolution(64, 64), Resolution(128, 128), Resolution(48, 176))


class Server:
    """The example, in a process of its own."""

    def __init__(self, engines: Path, *options: str) -> None:
        app = ROOT / "examples" / "serve" / "app.py"
        command = [sys.executable, app, engines, "--port", "0"]
        command += ["--model", "bundled:tiny", "--backend", "onnxruntime", "--fallback", "silent"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *options], stdout=subprocess.PIPE, text=True, env=environment
        )
        line = ""
        for line in self.process.stdout:  # Ray may say something first
            if line.startswith("listening on "):
                break
        else:
            line = ""
        if not line.startswith("listening on http://127.0.0.1:"):
            raise RuntimeError(f"the server has not started: {line!r}, {self.process.wait(60)}")
        self.port = int(line.rsplit(":", 1)[1])

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def health(self) -> dict:
        return json.loads(self.ask("GET", "/health")[1])

    def inside(self) -> int:
        """Requests that wait or run."""
        text = self.ask("GET", "/metrics")[1].decode()
        (line,) = (line for line in text.splitlines() if line.startswith("qvae_requests_inside"))
        return int(line.split()[-1])

    def rss(self) -> int:
        """Resident bytes of the replicas that have answered."""
        page = os.sysconf("SC_PAGE_SIZE")
        pids = [replica["pid"] for replica in self.health()["replicas"].values()]
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * page

    def stop(self) -> tuple[int, dict]:
        """SIGTERM; the exit code and what it has said last."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=120)
        return self.process.returncode, json.loads((said.splitlines() or ["{}"])[-1])


@contextmanager
def server(engines: Path, *options: str) -> Iterator[Server]:
    made = Server(engines, *options)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.terminate()  # Ray's processes end with it
        made.process.communicate(timeout=120)


def requests(folder: Path, sizes: Sequence[Resolution] = SIZES) -> list[tuple[str, bytes]]:
    """For each size a picture to encode and latents to decode."""
    found = []
    random = torch.Generator().manual_seed(5)
    for size in sizes:
        pixels = torch.randint(256, (size.height, size.width, 3), generator=random)
        png = io.BytesIO()
        Image.fromarray(pixels.byte().numpy()).save(png, "PNG")
        found.append(("/encode", png.getvalue()))
        path = folder / "latents.safetensors"
        values = torch.randn(1, 16, 1, *QWEN_IMAGE.latents_of(size), generator=random)
        write_latents(path, Latents(values, size.height, size.width))
        found.append(("/decode", path.read_bytes()))
    return found


def same(one: bytes, other: bytes) -> bool:
    """Whether two answers say the same; safetensors writes a header's names in any order."""
    if one == other or one[:4] == b"\x89PNG" or other[:4] == b"\x89PNG":
        return one == other
    parts = []
    for answer in (one, other):
        start = 8 + int.from_bytes(answer[:8], "little")
        parts.append((json.loads(answer[8:start]), answer[start:]))
    return parts[0] == parts[1]


def load(engines: Path, *, seconds: float, warm_up: float, clients: int = 8) -> dict:
    """Ask for `warm_up` + `seconds` s from all clients at once, then SIGTERM while they ask."""
    with tempfile.TemporaryDirectory() as folder, server(engines) as asked:
        work = requests(Path(folder))
        first = [asked.ask("POST", *one) for one in work]
        counts = Counter(sent=len(first), answered=sum(status == 200 for status, _ in first))
        lock, stopping = threading.Lock(), threading.Event()

        def count(what: str) -> None:
            with lock:
                counts[what] += 1

        def client(number: int) -> None:
            turn = number
            while True:
                turn += 1
                index = turn % len(work)
                late = stopping.is_set()
                try:
                    status, body = asked.ask("POST", *work[index])
                except (OSError, http.client.HTTPException):
                    if stopping.is_set():
                        return  # nobody listens any more; the server's own count tells of others
                    count("sent")
                    count("lost")
                    continue
                if status == 503 and stopping.is_set():
                    return  # it takes nothing new any more
                count("sent")
                count("answered" if status == 200 else "refused")
                if status == 200 and not same(body, first[index][1]):
                    count("wrong")
                if late:
                    count("after_sigterm")

        threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        samples = []
        began = time.monotonic()
        while (now := time.monotonic() - began) < warm_up + seconds:
            samples.append((now, asked.rss()))
            time.sleep(0.5)
        stopping.set()
        code, said = asked.stop()
        for thread in threads:
            thread.join()
        took = time.monotonic() - began
    warm = [bytes_ for at, bytes_ in samples if at >= warm_up]
    tenth = max(1, len(warm) // 10)
    start, end = (sum(part) / tenth for part in (warm[:tenth], warm[-tenth:]))
    return {
        "version": 1,
        "clients": clients,
        "warm_up_seconds": warm_up,
        "seconds": round(took - warm_up, 1),
        "requests": counts["answered"],
        "sent": counts["sent"],
        "lost": counts["lost"],
        "refused": counts["refused"],
        "wrong": counts["wrong"],
        "per_second": round(counts["answered"] / took, 1),
        "answered_by_server": said.get("answers", {}).get("200"),
        "exit_code": code,
        "rss_samples": len(warm),
        "rss_start_bytes": round(start),
        "rss_end_bytes": round(end),
        "rss_least_bytes": min(warm),
        "rss_most_bytes": max(warm),
        "rss_growth_percent": round(100 * (end / start - 1), 2),
        "rss_most_percent": round(100 * (max(warm) / start - 1), 2),
        "rss_within_percent": round(100 * max(abs(bytes_ / start - 1) for bytes_ in warm), 2),
    }


def failures(found: dict) -> list[str]:
    """What is not as it must be."""
    wrong = [f"{found[name]} {name}" for name in ("lost", "refused", "wrong") if found[name]]
    if found["exit_code"] != 0:
        wrong.append(f"exit code {found['exit_code']}")
    if found["requests"] != found["answered_by_server"]:
        wrong.append(f"answered {found['answered_by_server']}, received {found['requests']}")
    # Every sample against the mean of the first tenth: memory neither grows nor swings.
    if found["rss_within_percent"] > 2:
        wrong.append(f"memory changed by {found['rss_within_percent']} %, expected 2 % at most")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--warm-up", type=float, default=30)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines = ort_engines.build(Path(folder) / "engines")
        found = load(engines, seconds=given.seconds, warm_up=given.warm_up, clients=given.clients)
    text = json.dumps(found, indent=1)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n", encoding="utf-8")
    wrong = failures(found)
    print(*wrong, sep="\n", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
