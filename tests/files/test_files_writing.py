"""Files are replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvae_trt.errors import StoreError
from qvae_trt.files.writing import check_writable, replace_file, write_text


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_replace_file(tmp_path):
    path = tmp_path / "deep" / "latency.md"
    with replace_file(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(RuntimeError), replace_file(path) as temporary:
        temporary.write_text("two")
        raise RuntimeError
    assert path.read_text() == "one"
    assert _files(path.parent) == ["latency.md"]


def test_replace_file_names_what_the_disk_refuses(tmp_path):
    with pytest.raises(StoreError, match="No space left"), replace_file(tmp_path / "x"):
        raise OSError(28, "No space left on device")
    with pytest.raises(StoreError, match=r"[Dd]irectory"), replace_file(tmp_path):
        pass
    with pytest.raises(ValueError, match="mine"), replace_file(tmp_path / "x"):
        raise ValueError("mine")
    assert _files(tmp_path) == []


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "x.onnx")
    assert _files(tmp_path) == [], "nothing is left"
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("no folder")
    refused = {
        tmp_path / "taken": "is a directory",
        tmp_path / "file" / "x.onnx": "Not a directory|File exists",
        tmp_path / ("n" * 300) / "x.onnx": "too long",
        tmp_path / "new" / ("n" * 300) / "x.onnx": "too long",
        tmp_path / "\0" / "x.onnx": "null",
    }
    for path, words in refused.items():
        with pytest.raises(StoreError, match=words) as raised:
            check_writable(path)
        assert "engine-dir" not in str(raised.value)
        assert _files(tmp_path) == ["file", "taken"], "what was made on the way is gone"
    kept = tmp_path / "old.onnx"
    kept.write_text("kept")
    check_writable(kept)
    assert kept.read_text() == "kept"


def test_a_text_with_a_name_that_is_no_utf_8_is_written(tmp_path):
    write_text(tmp_path / "parity.md", "engines in /tmp/e\udcff: all right\n")
    assert (tmp_path / "parity.md").read_text() == "engines in /tmp/e\\udcff: all right\n"
