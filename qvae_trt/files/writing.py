"""Writing files whole or not at all, and private temporary folders.

What the file system refuses becomes a StoreError that says what helps.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qvae_trt.errors import StoreError, os_fix
from qvae_trt.files.reading import check_replaceable

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
        place = Path(tempfile.gettempdir(), f"{_PREFIX}*")
        with refusals_named("make", place, option=GRAPHS):
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
            try:
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # another build took it for a leftover before it was opened
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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"cannot {action} {path}: {error.strerror or error}{_free(path) if full else ''}"
        named = GRAPHS if is_in_workplace(path) else option
        raise StoreError(what, fix=os_fix(error, path.parent, option=named)) from error
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        raise StoreError(f"cannot {action} {str(path)!r}: {error}") from error


def _free(path: Path) -> str:
    try:
        status = os.statvfs(path.parent)
    except OSError:
        return ""
    return f" ({status.f_bavail * status.f_frsize} bytes are free)"


@contextmanager
def staged(path: Path, *, option: str = ENGINES) -> Iterator[Path]:
    """An empty private file in the folder of `path`, to write to; gone afterwards.

    Of an engine: hold its lock, since whoever takes it removes these files, and hand the file to
    `store.write_engine`. `option` is named where the file system refuses.
    """
    with refusals_named("write", path, option=option):
        check_replaceable(path)
    with refusals_named("write beside", path, option=option):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=_staged_prefix(path), suffix=".tmp", dir=path.parent
        )
        os.close(descriptor)
    temporary = path.with_name(Path(name).name)  # `name` is absolute, `path` need not be
    try:
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A private file to write to, which takes `path`'s place when the block ends well.

    When the block raises, `path` is as it was. For results (ONNX files, tables, pictures); engines
    go through `write_engine`, which knows of sidecars.

    Raises:
        StoreError: the file system refused, here or inside the block.
    """
    with staged(path, option=RESULTS) as temporary, refusals_named("write", path, option=RESULTS):
        yield temporary
        temporary.chmod(file_mode())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Make `target` a relative link to `source`, or a copy of it. Folders are made.

    A program that opens it meanwhile finds the old or the new file. StoreError where the
    file system refuses.
    """
    with refusals_named("write", target, option=RESULTS):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not link:
            with replace_file(target) as temporary:
                shutil.copyfile(source, temporary)
            return
        check_replaceable(target)
        new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        new.unlink(missing_ok=True)
        real = source.parent.resolve() / source.name
        new.symlink_to(os.path.relpath(real, target.parent.resolve()))
        new.replace(target)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises StoreError."""
    with replace_file(path) as temporary:
        # A name in it may be no UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def check_writable(path: Path) -> None:
    """For results that take long: what `replace_file` would be refused, said before the work.

    Leaves nothing. Raises StoreError.
    """
    with refusals_named("write", path, option=RESULTS):
        absent = [folder for folder in path.parents if not folder.exists()]
    try:
        with staged(path, option=RESULTS):
            pass
    finally:
        for folder in absent:
            with suppress(OSError, ValueError):  # not made, or in use by another process
                folder.rmdir()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_mode() -> int:
    """The permissions that this user gives new files."""
    # There is no call that only reads the umask. For the moment in between, files are private.
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


def staged_files(path: Path) -> list[Path]:
    """The private files beside a file, also those of processes that ended early."""
    beside = (entry for entry in path.parent.iterdir() if not entry.is_dir())
    return [
        entry
        for entry in beside
        if entry.name.startswith(_staged_prefix(path)) and entry.name.endswith(".tmp")
    ]


def _staged_prefix(path: Path) -> str:
    """Cut, since a name holds 255 bytes."""
    return f".{path.name[:60]}."
