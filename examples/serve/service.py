"""Latents to pictures and pictures to latents: what `app.py` serves, without what serves it."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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
    from collections.abc import Callable, Iterable, Mapping

    from qvae_trt.runtime.vae import TrtVae

MAX_BODY_BYTES = 64 << 20
MAX_PIXELS = 1 << 22  # 2048x2048
#: What malloc is told, by the numbers of glibc's malloc.h: see `keep_freed_memory`.
MALLOC = {
    -1: 256 << 20,  # M_TRIM_THRESHOLD: free bytes at the top of a heap that are kept
    -3: 32 << 20,  # M_MMAP_THRESHOLD: larger blocks get pages of their own; no more is allowed
    -8: 2,  # M_ARENA_MAX: each of them keeps that much
}
JSON = "application/json"

log = logging.getLogger("qvae")


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


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to a client."""

    status: int
    body: bytes
    media_type: str = JSON
    headers: dict[str, str] = field(default_factory=dict)


def told(status: int, error: str | None, *, retry_after: int | None = None, **more: Any) -> Answer:
    """An answer in words."""
    said = {"error": error, **more}
    text = json.dumps({name: value for name, value in said.items() if value is not None})
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return Answer(status, text.encode() + b"\n", headers=headers)


class Service:
    """One VAE, and what it has done since it was loaded. Several threads may call it."""

    def __init__(self, load: Callable[[], TrtVae]) -> None:
        began = time.monotonic()
        self.vae = load()
        self.load_seconds = time.monotonic() - began
        self._runs: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._lock = threading.Lock()

    def answer(self, path: str, body: bytes) -> Answer:
        """The answer to a request, whatever is wrong with it."""
        work, name, media_type = SERVICES[path]
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="qvae-service-") as folder:
                given, made = Path(folder) / "body", Path(folder) / name
                given.write_bytes(body)
                work(self.vae, given, made)
                answer = Answer(200, made.read_bytes(), media_type)
        except (PictureError, UsageError) as error:
            return told(400, error.what.rpartition("/body: ")[2], fix=error.fix)
        except DeviceMemoryError as error:
            return told(503, error.what, fix=error.fix, retry_after=5)
        except QvaeError as error:
            log.error("%s", error)
            return told(500, error.what, fix=error.fix)
        except Exception:
            log.exception("a bug")
            return told(500, "internal error")
        with self._lock:
            self._runs[path] += 1
            self._seconds[path] += time.monotonic() - began
        return answer

    def snapshot(self) -> dict[str, Any]:
        """What operators ask of this process, as JSON takes it."""
        with self._lock:
            runs, seconds = dict(self._runs), dict(self._seconds)
        return {
            "pid": os.getpid(),
            "load_seconds": self.load_seconds,
            "runs": runs,
            "run_seconds": seconds,
            "vae": status_of(self.vae),
        }


def status_of(vae: TrtVae) -> dict[str, Any]:
    """`vae.status()`: what served each size, fallbacks with their reasons, engines and memory."""
    return vae.status()


#: Name: kind, and what it is.
METRICS = {
    "qvae_requests_total": ("counter", "Requests answered, by path and status."),
    "qvae_requests_inside": ("gauge", "Requests that wait or run."),
    "qvae_load_seconds": ("gauge", "Seconds that it took to load the VAE."),
    "qvae_run_seconds_total": ("counter", "Seconds spent on requests that were answered well."),
    "qvae_runs_total": ("counter", "Requests that were answered well."),
    "qvae_served_total": ("counter", "Pictures and tiles, by what served them."),
    "qvae_fallbacks_total": ("counter", "What took another way than an engine, and why."),
    "qvae_engines": ("gauge", "Engines that are loaded."),
    "qvae_memory_bytes": ("gauge", "Memory held, by device and by what holds it."),
}
Sample = tuple[str, dict[str, str], float]


def samples(replica: str, snapshot: Mapping[str, Any]) -> Iterable[Sample]:
    """The metrics of one process."""
    of = {"replica": replica}
    yield "qvae_load_seconds", of, snapshot["load_seconds"]
    for path, count in snapshot["runs"].items():
        yield "qvae_runs_total", of | {"path": path}, count
        yield "qvae_run_seconds_total", of | {"path": path}, snapshot["run_seconds"][path]
    status = snapshot["vae"]
    for one in status.get("served", ()):
        labels = {name: one[name] for name in ("part", "size", "by")}
        yield "qvae_served_total", of | labels, one["calls"]
    for one in status.get("fallbacks", ()):
        labels = {
            "where": one["where"],
            "instead": one["instead"] or "",
            "reason": one["reason"].splitlines()[0],
        }
        yield "qvae_fallbacks_total", of | labels, one["calls"]
    yield "qvae_engines", of, len(status.get("engines", ()))
    for device, held in status.get("memory", {}).items():
        for name, count in held.items():
            labels = {"device": device, "kind": name.removesuffix("_bytes")}
            yield "qvae_memory_bytes", of | labels, count


def prometheus(found: Iterable[Sample]) -> str:
    """In the text format that Prometheus reads."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in found:
        inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        labelled = f"{name}{{{inner}}}" if inner else name
        by_name.setdefault(name, []).append(f"{labelled} {value!r}")
    lines: list[str] = []
    for name, (kind, about) in METRICS.items():
        if name in by_name:
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *by_name[name]]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
