"""Engines in order, folders that refuse, and a disk that fills."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from store_cases import SIZE, Built, engine_bytes, make_sidecar

from qvae_trt.profiles import engine_path
from qvae_trt.store import write_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """An engine that is in order."""
    path = engine_path(tmp_path / "engines", "encoder", "static", ".trt", SIZE)
    content = engine_bytes()
    return Built(path, write_engine(path, make_sidecar(), source=content), content)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="qvae-test-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*/")):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, bool]]:
    """A file system of 256 KiB; an ordinary folder and False where this user cannot mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "qvae-test", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield folder, mounted
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
