"""Opening engine files, and their SHA-256, computed once for each state of a file."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qvae_trt import regular_file
from qvae_trt.errors import EngineError
from qvae_trt.profiles import rebuild_command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

_Stamp = tuple[int, int, int, int, int]
_known: dict[Path, tuple[_Stamp, str]] = {}
_lock = threading.Lock()
# Time stamps are this coarse on some file systems (FAT: 2 s): a file that changed this recently
# could change again and look the same, so its hash is not remembered.
_SETTLED_NS = 2_000_000_000


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Remembered in this process by path, device, inode, size, mtime and ctime; any change of these
    reads the file again.

    Raises:
        EngineError: the file is missing, no regular file, or cannot be read.
    """
    with open_regular(path) as file:
        before = _stamp(os.fstat(file.fileno()))
        with _lock:
            known = _known.get(path)
        if known is not None and known[0] == before:
            return known[1]
        try:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
        after = _stamp(os.fstat(file.fileno()))
    now = time.time_ns()
    # Either way: a stamp in the future (the clock was set back) cannot be given again by a change
    # made now.
    settled = all(abs(now - changed) > _SETTLED_NS for changed in after[3:])
    if before == after and settled:
        with _lock:
            _known[path] = (after, digest)
    return digest


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """The file, open for reading. EngineError unless it is a regular file that can be read."""
    try:
        file = regular_file.open_regular(path)
    except FileNotFoundError as error:
        raise EngineError(
            f"{path}: no such file", fix=f"build it: {rebuild_command(path)}"
        ) from error
    except OSError as error:
        raise EngineError(f"{path}: cannot be opened: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise EngineError(f"{path!r}: cannot be opened: {error}") from error
    with file:
        yield file


def _stamp(status: os.stat_result) -> _Stamp:
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def stamp_of(path: Path) -> _Stamp | None:
    """What changes when a file changes; None where there is no file to ask."""
    try:
        return _stamp(path.stat())
    except (OSError, ValueError):
        return None


def read_all(file: BufferedReader, path: Path, limit: int) -> bytes:
    """At most `limit` bytes; EngineError where the disk refuses."""
    try:
        return file.read(limit)
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from error
