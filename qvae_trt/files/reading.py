"""Reading regular files, and nothing else: a named pipe could block its reader forever, and
a device may have no end.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

    from qvae_trt.files.values import Fault

#: Of a file of facts, such as a sidecar or an index of weights; real ones stay below a tenth of it.
MOST_BYTES = 16 << 20

_Stamp = tuple[int, int, int, int, int]
_hashes: dict[Path, tuple[_Stamp, str]] = {}
_lock = threading.Lock()
# Time stamps are this coarse on some file systems (FAT: 2 s): a file that changed this recently
# could change again and look the same, so its hash is not remembered.
SETTLED_NS = 2_000_000_000


def open_regular(path: Path) -> BufferedReader:
    """The file, open for reading.

    Raises:
        OSError: it cannot be opened, or is no regular file.
        ValueError: a NUL in the path.
    """
    # Without O_NONBLOCK a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _refuse_others(path, os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, *, fault: Fault, most_bytes: int | None = MOST_BYTES) -> bytes:
    """A regular file's bytes.

    Raises: what `fault` makes of why the file cannot be read, or of more than `most_bytes`.
    """
    try:
        with open_regular(path) as file:
            raw = file.read(None if most_bytes is None else most_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise fault(f"{path}: cannot be read: {why}") from error
    if most_bytes is not None and len(raw) > most_bytes:
        raise fault(f"{path}: more than {most_bytes} bytes")
    return raw


def check_replaceable(path: Path) -> None:
    """OSError where something else than a regular file stands: what is written to `path` would take
    its place.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    _refuse_others(path, status)


def sha256_file(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal.

    Remembered in this process by path, device, inode, size, mtime and ctime; any change of these
    reads the file again.

    Raises: as `open_regular`.
    """
    with open_regular(path) as file:
        before = _stamp(os.fstat(file.fileno()))
        with _lock:
            known = _hashes.get(path)
        if known is not None and known[0] == before:
            return known[1]
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        after = _stamp(os.fstat(file.fileno()))
    now = time.time_ns()
    # Either way: a stamp in the future (the clock was set back) cannot be given again by a change
    # made now.
    settled = all(abs(now - changed) > SETTLED_NS for changed in after[3:])
    if before == after and settled:
        with _lock:
            _hashes[path] = (after, digest)
    return digest


def stamp_of(path: Path) -> _Stamp | None:
    """What changes when a file changes; None where there is no file to ask."""
    try:
        return _stamp(path.stat())
    except (OSError, ValueError):
        return None


def _stamp(status: os.stat_result) -> _Stamp:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _refuse_others(path: Path, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        code, kind = errno.EISDIR, "a directory"
    else:
        code = errno.EEXIST
        kind = "a named pipe" if stat.S_ISFIFO(status.st_mode) else "a device or socket"
    raise OSError(code, f"is {kind}, expected a file", str(path))
