"""Opening and replacing regular files, and nothing else.

A named pipe makes its reader wait for a writer for ever, a device may have no end, and a rename
would put a file in the place of either.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path


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


def check_replaceable(path: Path) -> None:
    """OSError where something else than a regular file stands: what is written to `path` would take
    its place.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    _refuse_others(path, found)


def _refuse_others(path: Path, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        return
    if stat.S_ISDIR(found.st_mode):
        code, kind = errno.EISDIR, "a directory"
    else:
        code = errno.EEXIST
        kind = "a named pipe" if stat.S_ISFIFO(found.st_mode) else "a device or socket"
    raise OSError(code, f"is {kind}, expected a file", str(path))
