"""One builder an engine, and replacing an engine and its sidecar whole or not at all.

The lock holds between threads, processes, and hosts that share a file system.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from qvae_trt.errors import StoreError
from qvae_trt.files.reading import check_replaceable, sha256_file
from qvae_trt.files.writing import file_mode, refusals_named, staged, staged_files, sync
from qvae_trt.store.sidecar import Sidecar, next_sidecar_if_valid, next_sidecar_path, sidecar_path

LOCK_TIMEOUT_S = 3600.0
_POLL_S = 0.05


def lock_path(engine: Path) -> Path:
    return engine.with_name(f".{engine.name}.lock")


@contextmanager
def lock_engine(
    engine: Path, *, timeout_s: float = LOCK_TIMEOUT_S, on_wait: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Holds the engine's lock, after mending what a killed builder left behind.

    A caller that had to wait should check the engine again: the holder may have built it. The
    kernel drops the lock of a process that dies.

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
    with _acquire(engine, timeout_s, on_wait):
        try:
            with refusals_named("clean up beside", engine):
                finish_replacement(engine)
                for leftover in staged_files(engine):
                    leftover.unlink(missing_ok=True)
            yield
        finally:
            # Unlinked while it is held: a waiter that then gets this inode sees that the name is
            # gone and starts again.
            with suppress(OSError):
                lock_path(engine).unlink()


def _acquire(engine: Path, timeout_s: float, on_wait: Callable[[str], None] | None) -> FileIO:
    """The lock file, which holds the lock until it is closed."""
    path = lock_path(engine)
    deadline = time.monotonic() + timeout_s
    waited = False
    while True:
        with refusals_named("lock", engine):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = FileIO(os.open(path, flags, 0o666), "r+")
            try:
                granted = try_lock(file.fileno(), path)
                holder = "" if granted else file.read(200).decode("utf-8", "replace")
            except BaseException:
                file.close()
                raise
        if granted:
            with suppress(OSError):  # a full disk: the lock holds without its holder's name
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            return file
        holder = holder or "another process"
        file.close()
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


def write_engine(engine: Path, sidecar: Sidecar, temporary: Path) -> Sidecar:
    """Puts an engine and its sidecar in place; the package's docstring has the steps. Hold the
    engine's lock.

    Args:
        engine: where to.
        sidecar: without `engine_sha256`, `engine_bytes` and `created`, which are filled here.
        temporary: the engine, in a file of `staged(engine)`, which is moved.

    Returns:
        The sidecar as written.

    Raises:
        StoreError: the file system refused. The engine that was there is there still, with its
            sidecar.
    """
    with refusals_named("write", sidecar_path(engine)):
        check_replaceable(sidecar_path(engine))
    mode = file_mode()
    with refusals_named("write", engine):
        sync(temporary)
        size, digest = temporary.stat().st_size, sha256_file(temporary)
    if size == 0:
        raise StoreError(f"{engine}: the new engine is empty, expected at least one byte")
    whole = replace(
        sidecar,
        engine_sha256=digest,
        engine_bytes=size,
        created=sidecar.created or datetime.now(UTC).isoformat(timespec="seconds"),
    )
    following = next_sidecar_path(engine)
    try:
        with staged(engine) as text, refusals_named("write", following):
            text.write_text(whole.to_json(), encoding="utf-8")
            text.chmod(mode)
            sync(text)
            text.replace(following)
        with refusals_named("write", engine):
            temporary.chmod(mode)
            # The folder is synced between the renames: a disk may otherwise keep the later one
            # only.
            sync(engine.parent)
            temporary.replace(engine)
            sync(engine.parent)
    except BaseException:
        # Only if the engine was not replaced; else the next holder of the lock finishes.
        if temporary.exists():
            following.unlink(missing_ok=True)
        raise
    with refusals_named("write", sidecar_path(engine)):
        following.replace(sidecar_path(engine))
        sync(engine.parent)
    return whole
