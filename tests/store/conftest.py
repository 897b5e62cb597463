"""Engines in order, folders that refuse, and a disk that fills."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from store_cases import Built, build_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """An engine that is in order."""
    return build_engine(tmp_path / "engines")


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
