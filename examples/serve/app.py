"""Serve the VAE with Ray Serve: one replica a GPU, each with its engines or the fused path.

    pip install 'ray[serve]'
    python examples/serve/app.py engines --model Qwen/Qwen-Image --port 8000

    curl --data-binary @latents.safetensors http://127.0.0.1:8000/decode --output picture.png
    curl --data-binary @picture.png http://127.0.0.1:8000/encode --output latents.safetensors
    curl http://127.0.0.1:8000/health     # and /metrics, for Prometheus

It listens on 127.0.0.1 alone: it knows no users and no TLS. At most `--queue` requests are inside
at once; any more are answered 503 at once, with Retry-After. On SIGTERM or Ctrl-C it refuses new
requests, answers those that it has, and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

try:
    import ray
except ImportError as error:
    sys.exit(f"{error}: pip install 'ray[serve]'")
import torch
from ray import serve
from ray.exceptions import RayActorError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

import qvae_trt
from qvae_trt.errors import QvaeError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from service import (  # beside this file
    MAX_BODY_BYTES,
    SERVICES,
    Answer,
    Service,
    keep_freed_memory,
    prometheus,
    samples,
    told,
)

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

HOST = "127.0.0.1"
DRAIN_SECONDS = 300
#: How often a request is given to another replica when one dies with it.
TRIES = 3


@serve.deployment(health_check_period_s=10, graceful_shutdown_timeout_s=DRAIN_SECONDS)
class Replica:
    """One process with one GPU."""

    def __init__(self, options: dict[str, Any], workers: int) -> None:
        keep_freed_memory()
        self.service = Service(lambda: qvae_trt.load_vae(**options))
        # Threads that stay: PyTorch and ONNX Runtime keep memory for each thread that calls them.
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="vae")

    async def run(self, path: str, body: bytes) -> tuple[Answer, str, dict[str, Any]]:
        """The answer, and what is known of this replica."""
        loop = asyncio.get_running_loop()
        answer = await loop.run_in_executor(self.pool, self.service.answer, path, body)
        return answer, *self.about()

    def about(self) -> tuple[str, dict[str, Any]]:
        return serve.get_replica_context().replica_id.unique_id, self.service.snapshot()

    def check_health(self) -> None:
        """Ray starts another replica where this raises: a GPU that has failed answers nothing."""
        torch.zeros(1, device=self.service.vae.device).item()


@serve.deployment(max_ongoing_requests=10_000, graceful_shutdown_timeout_s=DRAIN_SECONDS)
class Front:
    """What listens: it bounds what is inside, and counts."""

    def __init__(self, replicas: DeploymentHandle, queue: int) -> None:
        self.replicas, self.queue = replicas, queue
        self.inside, self.stopping = 0, False
        self.answers: Counter[tuple[str, int]] = Counter()
        self.known: dict[str, dict[str, Any]] = {}  # of each replica, as of its last answer

    async def __call__(self, request: Request) -> Response:
        path = request.url.path
        answer = await (self._get(path) if request.method == "GET" else self._post(path, request))
        self.answers[path if path in SERVICES else "other", answer.status] += 1
        return Response(answer.body, answer.status, answer.headers, answer.media_type)

    async def _get(self, path: str) -> Answer:
        if path == "/health":
            return told(503 if self.stopping else 200, None, **self.counts(), replicas=self.known)
        if path == "/metrics":
            found = [
                ("qvae_requests_total", {"path": at, "status": str(status)}, count)
                for (at, status), count in self.answers.items()
            ]
            found.append(("qvae_requests_inside", {}, self.inside))
            for replica, snapshot in self.known.items():
                found += samples(replica, snapshot)
            return Answer(200, prometheus(found).encode(), "text/plain; version=0.0.4")
        return told(404, f"{path}: expected /health, /metrics, or POST to {', '.join(SERVICES)}")

    async def _post(self, path: str, request: Request) -> Answer:
        size = request.headers.get("Content-Length", "")
        if path not in SERVICES:
            return told(404, f"{path}: expected {' or '.join(SERVICES)}")
        if not (size.isascii() and size.isdecimal()):
            return told(411, "expected a Content-Length")
        if len(size) > 12 or int(size) > MAX_BODY_BYTES:
            return told(413, f"{size} bytes, expected at most {MAX_BODY_BYTES}")
        if self.stopping or self.inside >= self.queue:
            return told(503, "stopping" if self.stopping else "busy", retry_after=1)
        self.inside += 1
        try:
            return await self._run(path, await request.body())
        except ClientDisconnect:
            return told(400, f"the body ended before its {size} bytes")
        finally:
            self.inside -= 1

    async def _run(self, path: str, body: bytes) -> Answer:
        for _ in range(TRIES):
            try:
                answer, replica, snapshot = await self.replicas.run.remote(path, body)
            except RayActorError:  # it died with the request, which another one can answer
                self.known.clear()
                continue
            self.known[replica] = snapshot
            return answer
        return told(503, "replicas died while they ran it", retry_after=5)

    def counts(self) -> dict[str, dict[str, int]]:
        """How many pictures and latents were answered with what status."""
        found: Counter[str] = Counter()
        for (path, status), count in self.answers.items():
            if path in SERVICES:
                found[str(status)] += count
        return {"answers": dict(found)}

    async def drain(self) -> dict[str, dict[str, int]]:
        """Take nothing new, and wait until all that is inside is answered."""
        self.stopping = True
        while self.inside:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.2)  # the last answers are on their way through Ray's proxy
        return self.counts()


def free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        return int(probe.getsockname()[1])


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the VAE on 127.0.0.1.")
    parser.add_argument("engine_dir", help="'' for the fused path alone")
    parser.add_argument("--model", default="Qwen/Qwen-Image")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--fallback", default="warn", choices=("warn", "raise", "silent"))
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--queue", type=int, default=32, help="requests inside at once")
    parser.add_argument("--workers", type=int, default=1, help="that run at once in a replica")
    gpus = torch.cuda.device_count()
    parser.add_argument("--replicas", type=int, default=max(1, gpus), help="one a GPU")
    given = parser.parse_args()
    if min(given.queue, given.workers, given.replicas) < 1:
        parser.error("--queue, --workers and --replicas: expected 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = {
        "engine_dir": str(Path(given.engine_dir).resolve()) if given.engine_dir else None,
        "model": given.model,
        "backend": given.backend,
        "fallback": given.fallback,
    }
    try:
        from qvae_trt.model import load_model

        load_model(given.model)  # here, where it can be said what is wrong with it
    except QvaeError as error:
        print(error, file=sys.stderr)
        return error.exit_code

    ray.init(include_dashboard=False, log_to_driver=True)
    port = given.port or free_port()
    serve.start(http_options={"host": HOST, "port": port})
    each = {"num_gpus": 1 if gpus else 0, "num_cpus": 0}
    replicas = Replica.options(
        num_replicas=given.replicas,
        ray_actor_options=each,
        max_ongoing_requests=given.workers,
    ).bind(options, given.workers)
    front = Front.options(ray_actor_options={"num_cpus": 0}).bind(replicas, given.queue)
    handle = serve.run(front, name="qvae", route_prefix="/")

    # Any thread may be given a signal, and a main thread that waits for a lock would sleep on.
    ended, ending = socket.socketpair()
    ending.setblocking(False)
    signal.set_wakeup_fd(ending.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    print(f"listening on http://{HOST}:{port}", flush=True)
    ended.recv(1)
    answered = handle.drain.remote().result(timeout_s=DRAIN_SECONDS)
    serve.shutdown()
    ray.shutdown()
    print(json.dumps(answered), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
