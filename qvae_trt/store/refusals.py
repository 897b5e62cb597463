"""What the file system refuses, in words."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError
from qvae_trt.workplace import is_in_workplace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENGINES, RESULTS, GRAPHS = "--engine-dir DIR", "--out", "TMPDIR=DIR"


@contextmanager
def refusals_named(action: str, path: Path, *, option: str = ENGINES) -> Iterator[None]:
    """Turns an OSError inside into a StoreError: what could not be done to `path`, why, and what
    helps. `option` is the one that names the folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own complaint, not the file system's
            raise
        raise _refusal(action, path, error, option) from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise StoreError(f"cannot {action} {str(path)!r}: {error}") from error


def _refusal(action: str, path: Path, error: OSError, option: str) -> StoreError:
    if is_in_workplace(path):
        option = GRAPHS
    elsewhere = f"or name another folder: {option}"
    what = f"cannot {action} {path}: {error.strerror or error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(f"{what}{_free(path)}", fix=f"make room there, {elsewhere}")
        case errno.EFBIG:
            fix = f"raise the limit on file sizes (ulimit -f), {elsewhere}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            fix = f"make {path.parent} writable, {elsewhere}"
        case errno.EISDIR | errno.ENOTDIR | errno.ENOTEMPTY | errno.EEXIST | errno.ELOOP:
            fix = f"move what stands in the way, {elsewhere}"
        case errno.ENAMETOOLONG:
            fix = f"use a shorter path: {option}"
        case errno.ENOLCK | errno.ENOSYS | errno.EOPNOTSUPP:
            fix = f"this file system has no locks; name a folder on another: {option}"
        case _:
            return StoreError(what)
    return StoreError(what, fix=fix)


def _free(path: Path) -> str:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return ""
    return f" ({status.f_bavail * status.f_frsize} bytes are free)"
