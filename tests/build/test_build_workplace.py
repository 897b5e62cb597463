"""The private folders of exported graphs, and those that killed builds left."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qvae_trt.errors import StoreError
from qvae_trt.files.writing import replace_file, workplace

HOLD = """
import sys
from qvae_trt.files.writing import workplace
with workplace() as folder:
    (folder / "graph.onnx").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def hold() -> tuple[subprocess.Popen[str], Path]:
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe, text=True)
    assert other.stdout is not None
    return other, Path(other.stdout.readline().strip())


def test_private_and_gone_afterwards(own_temporary_folder: Path) -> None:
    with workplace() as folder:
        assert folder.parent == own_temporary_folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "x").write_text("x")
    assert list(own_temporary_folder.iterdir()) == []


def test_gone_after_an_error(own_temporary_folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workplace():
        raise KeyboardInterrupt
    assert list(own_temporary_folder.iterdir()) == []


def test_that_of_a_killed_build_goes_with_the_next(own_temporary_folder: Path) -> None:
    other, left = hold()
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    assert (left / "graph.onnx").is_file()
    with workplace() as folder:
        assert list(own_temporary_folder.iterdir()) == [folder]


def test_that_of_a_living_build_stays(own_temporary_folder: Path) -> None:
    other, theirs = hold()
    with workplace():
        assert (theirs / "graph.onnx").is_file()
    other.communicate("")
    assert list(own_temporary_folder.iterdir()) == []


def test_what_is_no_folder_of_ours_stays(own_temporary_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "x").write_text("x")
    (own_temporary_folder / "qvae-build-link").symlink_to(target)
    (own_temporary_folder / "qvae-build-file").write_text("x")
    with workplace():
        pass
    assert (target / "x").is_file()
    assert (own_temporary_folder / "qvae-build-file").is_file()


def test_a_full_one_is_told_by_its_own_name(own_temporary_folder: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        workplace() as folder,
        pytest.raises(StoreError) as caught,
        replace_file(folder / "encoder.onnx"),
    ):
        raise full
    assert caught.value.fix == "make room there, or name another folder: TMPDIR=DIR"


def test_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="No such file or directory") as caught, workplace():
        pass
    assert "TMPDIR" in str(caught.value.fix)
