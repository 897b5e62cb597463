"""A small server around `load_vae`: latents to pictures, and pictures to latents.

    python examples/server.py engines --model Qwen/Qwen-Image --port 8000

    curl --data-binary @latents.safetensors http://127.0.0.1:8000/decode --output picture.png
    curl --data-binary @picture.png http://127.0.0.1:8000/encode --output latents.safetensors

It listens on 127.0.0.1 alone: it knows no users and no TLS. At most `--queue` requests are inside
at once; any more are answered 503 at once, with Retry-After. On SIGTERM or Ctrl-C it takes no new
connections, answers those that it has, and ends with exit code 0.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import signal
import socket
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import qvae_trt
from qvae_trt.errors import DeviceMemoryError, PictureError, QvaeError, UsageError
from qvae_trt.images import (
    Latents,
    crop,
    pad_to_multiple,
    read_latents,
    read_picture,
    write_latents,
    write_picture,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvae_trt.runtime.vae import TrtVae

HOST = "127.0.0.1"
MAX_BODY_BYTES = 64 << 20
MAX_PIXELS = 1 << 22  # 2048x2048
SECONDS_FOR_A_CLIENT = 30  # that sends or reads nothing
#: What malloc is told, by the numbers of glibc's malloc.h: see `keep_freed_memory`.
MALLOC = {
    -1: 256 << 20,  # M_TRIM_THRESHOLD: free bytes at the top of a heap that are kept
    -3: 32 << 20,  # M_MMAP_THRESHOLD: larger blocks get pages of their own; no more is allowed
    -8: 2,  # M_ARENA_MAX: each of them keeps that much
}

log = logging.getLogger("server")


def keep_freed_memory() -> None:
    """Have malloc keep what one request frees for the next.

    By default glibc gives it back and asks for it again with every picture: memory then goes up and
    down by what a picture takes, and a slow leak cannot be seen below that. Another C library keeps
    its own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in MALLOC.items():
            mallopt(name, value)


def decode(vae: TrtVae, body: Path, answer: Path) -> None:
    """A latents file as a PNG."""
    latents = read_latents(body)
    # What is decoded: the size in the file may name a small part of it.
    height, width = (8 * side for side in latents.values.shape[-2:])
    _check_size(height, width)
    with torch.no_grad():
        pixels = vae.decode(latents.values, return_dict=False)[0]
    write_picture(answer, crop(pixels, (latents.height, latents.width)))


def encode(vae: TrtVae, body: Path, answer: Path) -> None:
    """A picture of any kind as a latents file."""
    x = read_picture(body)
    height, width = x.shape[-2:]
    _check_size(height, width)
    with torch.no_grad():
        posterior = vae.encode(pad_to_multiple(x)[:, :, None], return_dict=False)[0]
    write_latents(answer, Latents(posterior.mode(), height, width))


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise PictureError(f"{width}x{height} is too large: expected at most {MAX_PIXELS} pixels")


#: Path: what is done, the name that gives the answer's kind, and its media type.
SERVICES: dict[str, tuple[Callable[[TrtVae, Path, Path], None], str, str]] = {
    "/decode": (decode, "picture.png", "image/png"),
    "/encode": (encode, "latents.safetensors", "application/octet-stream"),
}


class Server(ThreadingHTTPServer):
    """A thread for each connection; `workers` threads that run the VAE."""

    daemon_threads = False  # `server_close` waits until every answer is sent
    request_queue_size = 128

    def __init__(self, vae: TrtVae, *, port: int, queue: int, workers: int) -> None:
        super().__init__((HOST, port), Handler)
        self.vae = vae
        self.slots = threading.BoundedSemaphore(queue)
        # Threads that stay: PyTorch and ONNX Runtime keep memory for each thread that calls them.
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="vae")
        self.answers: dict[int, int] = {}
        self._lock = threading.Lock()
        self._idle = False

    def count(self, status: int) -> None:
        with self._lock:
            self.answers[status] = self.answers.get(status, 0) + 1

    def run(self, path: str, body: bytes) -> bytes:
        """The answer to a body. Raises QvaeError."""
        work, name, _ = SERVICES[path]
        with tempfile.TemporaryDirectory(prefix="qvae-server-") as folder:
            given, made = Path(folder) / "body", Path(folder) / name
            given.write_bytes(body)
            self.pool.submit(work, self.vae, given, made).result()
            return made.read_bytes()

    def handle_timeout(self) -> None:
        self._idle = True

    def stop(self) -> None:
        """Answer all who have connected, then end. Call it when `serve_forever` has returned."""
        self.timeout = 0
        while not self._idle:  # connections that the system has accepted and we have not
            self.handle_request()
        self.server_close()
        self.pool.shutdown()


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS_FOR_A_CLIENT

    def do_GET(self) -> None:
        if self.path != "/health":
            self._tell(404, f"{self.path}: expected /health, or POST to {', '.join(SERVICES)}")
            return
        self._tell(200, None, answers=self.server.answers, memory=self.server.vae.memory())

    def do_POST(self) -> None:
        size = self.headers.get("Content-Length", "")
        if self.path not in SERVICES:
            self._tell(404, f"{self.path}: expected {' or '.join(SERVICES)}")
        elif not (size.isascii() and size.isdecimal()):
            self._tell(411, "expected a Content-Length")
        elif len(size) > 12 or int(size) > MAX_BODY_BYTES:
            self._tell(413, f"{size} bytes, expected at most {MAX_BODY_BYTES}")
        elif not self.server.slots.acquire(blocking=False):
            self._skip(int(size))
            self._tell(503, "busy", retry_after=1)
        else:
            try:
                self._serve(int(size))
            finally:
                self.server.slots.release()

    def _serve(self, size: int) -> None:
        body = self.rfile.read(size)
        if len(body) < size:
            self._tell(400, f"{len(body)} bytes came, Content-Length says {size}")
            return
        try:
            answer = self.server.run(self.path, body)
        except (PictureError, UsageError) as error:
            self._tell(400, error.what.rpartition("/body: ")[2], fix=error.fix)
        except DeviceMemoryError as error:
            self._tell(503, error.what, fix=error.fix, retry_after=5)
        except QvaeError as error:
            log.error("%s", error)
            self._tell(500, error.what, fix=error.fix)
        except Exception:
            log.exception("a bug")
            self._tell(500, "internal error")
        else:
            self._send(200, SERVICES[self.path][2], answer)

    def _skip(self, size: int) -> None:
        """Read and drop a body: an answer before its end looks like a broken connection."""
        while size > 0 and (part := self.rfile.read(min(size, 1 << 16))):
            size -= len(part)

    def _tell(
        self, status: int, error: str | None, *, retry_after: int | None = None, **more: object
    ) -> None:
        said = {"error": error, **more}
        text = json.dumps({name: value for name, value in said.items() if value is not None})
        self._send(status, "application/json", text.encode() + b"\n", retry_after)

    def _send(self, status: int, kind: str, body: bytes, retry_after: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.write(body)
        self.server.count(status)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        log.debug(format, *args)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serve the VAE on 127.0.0.1.")
    parser.add_argument("engine_dir")
    parser.add_argument("--model", default="Qwen/Qwen-Image")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--fallback", default="warn", choices=("warn", "raise", "silent"))
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--queue", type=int, default=32, help="requests inside at once")
    parser.add_argument("--workers", type=int, default=1, help="that run at once")
    given = parser.parse_args()
    if min(given.queue, given.workers) < 1:
        parser.error("--queue and --workers: expected 1 or more")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    keep_freed_memory()

    # Any thread may be given a signal, and a main thread that waits for a lock would sleep on.
    ended, ending = socket.socketpair()
    ending.setblocking(False)
    signal.set_wakeup_fd(ending.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        vae = qvae_trt.load_vae(
            given.engine_dir, model=given.model, backend=given.backend, fallback=given.fallback
        )
    except QvaeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    server = Server(vae, port=given.port, queue=given.queue, workers=given.workers)
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    print(f"listening on http://{HOST}:{server.server_port}", flush=True)
    ended.recv(1)
    server.shutdown()
    serving.join()
    server.stop()
    print(json.dumps({"answers": server.answers}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
