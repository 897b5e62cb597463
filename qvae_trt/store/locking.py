"""One builder an engine: between threads, processes, and hosts that share a file system."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError
from qvae_trt.files.writing import refusals_named, staged_files, sync
from qvae_trt.store.checking import next_sidecar_if_valid
from qvae_trt.store.sidecar import next_sidecar_path, sidecar_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_TIMEOUT_S = 3600.0
_POLL_S = 0.05
_held = threading.local()


def lock_path(engine: Path) -> Path:
    return engine.with_name(f".{engine.name}.lock")


@contextmanager
def lock_engine(
    engine: Path,
    *,
    timeout_s: float = LOCK_TIMEOUT_S,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Holds the engine's lock, after mending what a killed builder left behind.

    Whoever had to wait should check the engine again: the holder may just have built it. A thread
    that holds the lock may take it again. The kernel drops the lock of a process that dies.

    Args:
        engine: the engine's path; its folder is made if need be.
        timeout_s: how long to wait for another holder.
        on_wait: called once, with who holds the lock, if there is a wait.

    Raises:
        StoreError: the folder cannot be written to, or another process holds the lock for longer
            than `timeout_s`.
    """
    with refusals_named("make the folder of", engine):
        engine.parent.mkdir(parents=True, exist_ok=True)
        key = str(engine.parent.resolve() / engine.name)
    mine: set[str] = _held.__dict__.setdefault("engines", set())
    if key in mine:
        yield
        return
    descriptor = _acquire(engine, timeout_s, on_wait)
    mine.add(key)
    try:
        with refusals_named("clean up beside", engine):
            finish_replacement(engine)
            for leftover in staged_files(engine):
                leftover.unlink(missing_ok=True)
        yield
    finally:
        mine.discard(key)
        # Unlinked while it is held: a waiter that then gets this inode sees that the name is gone
        # and starts again.
        with suppress(OSError):
            lock_path(engine).unlink()
        os.close(descriptor)


def _acquire(engine: Path, timeout_s: float, on_wait: Callable[[str], None] | None) -> int:
    path = lock_path(engine)
    deadline = time.monotonic() + timeout_s
    waited = False
    while True:
        with refusals_named("lock", engine):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        granted = False
        try:
            with refusals_named("lock", engine):
                granted = try_lock(descriptor, path)
            if granted:
                with suppress(OSError):  # a full disk: the lock holds without its holder's name
                    os.ftruncate(descriptor, 0)
                    holder = f"process {os.getpid()} on {socket.gethostname()}"
                    os.write(descriptor, holder.encode())
                return descriptor
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace") or "another process"
        finally:
            if not granted:
                os.close(descriptor)
        if time.monotonic() >= deadline:
            raise StoreError(
                f"{engine}: locked by {holder} for more than {timeout_s:g} s",
                fix="wait for that build to end, or end it; the lock goes with its process",
            )
        if on_wait is not None and not waited:
            on_wait(holder)
        waited = True
        time.sleep(_POLL_S)


def try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    locked = os.fstat(descriptor)
    return (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)


def clean_up(engine: Path) -> None:
    """Mend and remove what a killed builder left beside an engine that needs no building.

    Does nothing while another process holds the lock, or where the folder cannot be written to.
    """
    with suppress(StoreError, OSError):
        left = next_sidecar_path(engine), lock_path(engine), *staged_files(engine)
        if any(path.exists() for path in left):
            with lock_engine(engine, timeout_s=0):
                pass


def finish_replacement(engine: Path) -> None:
    """Step 4 of a replacement that was cut short; hold the lock."""
    following = next_sidecar_path(engine)
    if next_sidecar_if_valid(engine) is not None:
        following.replace(sidecar_path(engine))
        # Else a power cut after the next write's first rename may leave that one alone.
        sync(engine.parent)
    else:
        following.unlink(missing_ok=True)
