"""What the file system refuses, in words."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ELSEWHERE = "or name another folder: --engine-dir DIR"


@contextmanager
def refusals_named(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError inside into a StoreError: what could not be done to `path`, why, and what
    helps.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a library's own complaint, not the file system's
            raise
        raise _refusal(action, path, error) from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise StoreError(f"cannot {action} {str(path)!r}: {error}") from error


def _refusal(action: str, path: Path, error: OSError) -> StoreError:
    what = f"cannot {action} {path}: {error.strerror or error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StoreError(f"{what}{_free(path)}", fix=f"make room there, {_ELSEWHERE}")
        case errno.EFBIG:
            fix = f"raise the limit on file sizes (ulimit -f), {_ELSEWHERE}"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            fix = f"make {path.parent} writable, {_ELSEWHERE}"
        case errno.EISDIR | errno.ENOTDIR | errno.ENOTEMPTY | errno.EEXIST | errno.ELOOP:
            fix = f"move what stands in the way, {_ELSEWHERE}"
        case errno.ENAMETOOLONG:
            fix = "use a shorter path: --engine-dir DIR"
        case errno.ENOLCK | errno.ENOSYS | errno.EOPNOTSUPP:
            fix = "this file system has no locks; name a folder on another: --engine-dir DIR"
        case _:
            return StoreError(what)
    return StoreError(what, fix=fix)


def _free(path: Path) -> str:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return ""
    return f" ({status.f_bavail * status.f_frsize} bytes are free)"
