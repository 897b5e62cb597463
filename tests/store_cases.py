"""What the tests of the store share: an engine with its sidecar, and processes to end early."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qvae_trt.files.writing import refusals_named, staged
from qvae_trt.profiles import Profile, Resolution, engine_path
from qvae_trt.store import EngineKey, Sidecar, lock_engine, write_engine
from qvae_trt.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = Resolution(928, 1664)
NOBODY = 65534


def make_sidecar(**key: object) -> Sidecar:
    fields = {
        "flavour": "tensorrt",
        "flavour_version": "10.16.1.11",
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "part": "encoder",
        "mode": "static",
        "precision": "fp16",
        "lowering": "resize,fp32,1",
        "profiles": (Profile.fixed(SIZE),),
        "onnx_sha256": "a" * 64,
        "weights_sha256": "b" * 64,
        "recipe_sha256": "c" * 64,
    }
    return Sidecar(
        key=EngineKey(**{**fields, **key}),
        input=TensorSpec("images", "float16", (1, 3, 1, 928, 1664)),
        output=TensorSpec("moments", "float16", (1, 32, 1, 116, 208)),
        build_flags={"fp16": "true"},
        command="qvae build --mode static --aspect 16:9 --model bundled:tiny",
        build_seconds=1.5,
    )


def engine_bytes(size: int = 4096, *, seed: int = 1) -> bytes:
    return bytes((i * 31 + i // 256 + seed) % 256 for i in range(size))


def put_engine(path: Path, sidecar: Sidecar, content: bytes) -> Sidecar:
    """Bytes as an engine in its place, as a build does it."""
    with lock_engine(path), staged(path) as temporary:
        with refusals_named("write", path):
            temporary.write_bytes(content)
        return write_engine(path, sidecar, temporary)


@dataclass
class Built:
    path: Path
    sidecar: Sidecar
    content: bytes


def build_engine(folder: Path) -> Built:
    """An engine that is in order."""
    path = engine_path(folder, "encoder", "static", ".trt", SIZE)
    content = engine_bytes()
    return Built(path, put_engine(path, make_sidecar(), content), content)


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process: 0, 1 for an exception, or minus the signal that ended it."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:  # noqa: BLE001 - told, and the child ends
            os.write(2, f"child: {error!r}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def without_privileges(work: Callable[[], None]) -> int:
    """`in_child`, as a user whom permissions bind: root may do anything."""

    def work_as_nobody() -> None:
        # A root without capabilities may not change user; permissions bind it already.
        with suppress(PermissionError):
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
        work()

    return in_child(work_as_nobody)
