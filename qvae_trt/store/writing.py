"""Replacing an engine and its sidecar, whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import StoreError
from qvae_trt.files.reading import check_replaceable, sha256_file
from qvae_trt.files.writing import file_mode, is_staged, refusals_named, staged, sync
from qvae_trt.store.locking import finish_replacement, lock_engine
from qvae_trt.store.sidecar import next_sidecar_path, sidecar_path

if TYPE_CHECKING:
    from qvae_trt.store.sidecar import Sidecar


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
        if isinstance(source, Path) and _is_beside(source, engine):
            return _put(engine, sidecar, source)
        with staged(engine) as temporary:
            with refusals_named("write", engine):
                if isinstance(source, bytes):
                    temporary.write_bytes(source)
                else:
                    shutil.copyfile(source, temporary)
            return _put(engine, sidecar, temporary)


def _is_beside(source: Path, engine: Path) -> bool:
    return source.absolute().parent == engine.absolute().parent and is_staged(source, engine)


def _put(engine: Path, sidecar: Sidecar, temporary: Path) -> Sidecar:
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
