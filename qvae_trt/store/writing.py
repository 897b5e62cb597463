"""Replacing an engine and its sidecar, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError
from qvae_trt.regular_file import check_replaceable
from qvae_trt.store.hashing import sha256_file
from qvae_trt.store.locking import finish_replacement, lock_engine, staged_prefix, sync
from qvae_trt.store.refusals import ENGINES, RESULTS, refusals_named
from qvae_trt.store.sidecar import next_sidecar_path, sidecar_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qvae_trt.store.sidecar import Sidecar


@contextmanager
def staged(engine: Path, *, option: str = ENGINES) -> Iterator[Path]:
    """An empty private file in the engine's folder, for a backend to write to; gone afterwards.

    Hold the engine's lock: whoever takes it removes these files. Hand the path to `write_engine` as
    `source`. `option` is named where the file system refuses.
    """
    with refusals_named("write", engine, option=option):
        check_replaceable(engine)
    with refusals_named("write beside", engine, option=option):
        engine.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(
            prefix=staged_prefix(engine), suffix=".tmp", dir=engine.parent
        )
        os.close(descriptor)
    temporary = engine.with_name(Path(name).name)  # `name` is absolute, `engine` need not be
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
    with (
        staged(path, option=RESULTS) as temporary,
        refusals_named("write", path, option=RESULTS),
    ):
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises StoreError."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


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


def write_engine(engine: Path, sidecar: Sidecar, *, source: Path | bytes) -> Sidecar:
    """Puts an engine and its sidecar in place; the package's docstring has the steps.

    Takes the engine's lock unless this thread holds it.

    Args:
        engine: where to.
        sidecar: without `engine_sha256`, `engine_bytes` and `created`, which are filled here.
        source: the engine's bytes, or a file. A file from `staged(engine)` is moved, any other is
            copied.

    Returns:
        The sidecar as written.

    Raises:
        StoreError: the file system refused. The engine that was there is there still, with its
            sidecar.
    """
    with lock_engine(engine):
        with refusals_named("write", sidecar_path(engine)):
            check_replaceable(sidecar_path(engine))
            finish_replacement(engine)
        if isinstance(source, Path) and _is_staged(source, engine):
            return _put(engine, sidecar, source)
        with staged(engine) as temporary:
            with refusals_named("write", engine):
                if isinstance(source, bytes):
                    temporary.write_bytes(source)
                else:
                    shutil.copyfile(source, temporary)
            return _put(engine, sidecar, temporary)


def _is_staged(source: Path, engine: Path) -> bool:
    return (
        source.absolute().parent == engine.absolute().parent
        and source.name.startswith(staged_prefix(engine))
        and source.name.endswith(".tmp")
    )


def _put(engine: Path, sidecar: Sidecar, temporary: Path) -> Sidecar:
    mode = 0o666 & ~_umask()
    with refusals_named("write", engine):
        sync(temporary)
        size = temporary.stat().st_size
    if size == 0:
        raise StoreError(f"{engine}: the new engine is empty, expected at least one byte")
    whole = replace(
        sidecar,
        engine_sha256=sha256_file(temporary),
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


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Make `target` a relative link to `source`, or a copy of it. Folders are made.

    Whoever opens it meanwhile finds the old or the new one. StoreError where the file system
    refuses.
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


def _umask() -> int:
    # There is no call that only reads it. For the moment in between, files are private.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
