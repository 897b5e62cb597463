"""Private temporary folders for graphs; those of killed builds go with the next build."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIX = "qvae-build-"


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder that only this user can read, locked while it is in use, gone afterwards.

    Raises:
        StoreError: the system's temporary folder cannot be written to.
    """
    sweep()
    folder, lock = _claim()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _claim() -> tuple[Path, int]:
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            if Path(tempfile.gettempdir()).is_dir():
                continue  # another build took it for a leftover before it was opened
            raise _refused(error) from error
        except OSError as error:
            raise _refused(error) from error
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder, lock
        os.close(lock)


def is_in_workplace(path: Path) -> bool:
    """Whether a file is in one of these folders, in whichever process."""
    place = Path(tempfile.gettempdir())
    return any(
        folder.name.startswith(_PREFIX) and folder.parent == place for folder in path.parents
    )


def sweep() -> None:
    """Removes this user's folders that no process holds: a dead one's lock is dropped."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or just gone
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _refused(error: OSError) -> StoreError:
    return StoreError(
        f"no temporary folder for a graph: {error.strerror}",
        fix="set TMPDIR to a folder with space that this user may write to",
    )
