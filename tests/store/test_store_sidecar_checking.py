"""Whatever happens to an engine's files, checking the engine says so."""

from __future__ import annotations

import os
import shutil
import signal
import socket

import pytest
from store_cases import SIZE, engine_bytes, make_sidecar, put_engine, without_privileges

from qvae_trt.errors import EngineError, ForeignEngineError, StaleEngineError
from qvae_trt.files import reading as hashing
from qvae_trt.profiles import engine_path
from qvae_trt.store import check_engine, read_sidecar, sidecar_path

LENGTH = 4096


def test_an_engine_in_order(built):
    assert check_engine(built.path) == built.sidecar
    expected = {"gpu": "NVIDIA H200", "precision": "fp16", "part": "encoder", "lowering": None}
    assert check_engine(built.path, expected=expected) == built.sidecar
    assert read_sidecar(built.path) == built.sidecar


# --- the engine ---


@pytest.mark.parametrize("length", [1, 2, 511, 512, 1024, 2048, 4000, LENGTH - 1])
def test_truncated(built, length):
    check_engine(built.path)
    os.truncate(built.path, length)
    with pytest.raises(StaleEngineError) as caught:
        check_engine(built.path)
    assert f"cut short, or not the file that the sidecar describes: found {length} bytes" in str(
        caught.value
    )
    assert "expected 4096 bytes" in caught.value.what


@pytest.mark.parametrize("offset", range(0, LENGTH, LENGTH // 32))
def test_a_byte_flipped(built, offset):
    check_engine(built.path)
    with built.path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes([built.content[offset] ^ 1]))
    with pytest.raises(StaleEngineError, match="changed since it was built") as caught:
        check_engine(built.path)
    assert caught.value.fix.endswith(
        f"qvae build --mode static --resolution 1664x928 --part encoder --model bundled:tiny"
        f" --engine-dir {built.path.parents[2]}"
    )


def test_grown(built):
    with built.path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(StaleEngineError, match="4097 bytes"):
        check_engine(built.path)


def test_empty(built):
    os.truncate(built.path, 0)
    with pytest.raises(StaleEngineError, match="found 0 bytes, expected 4096 bytes"):
        check_engine(built.path)


def test_missing(built):
    built.path.unlink()
    with pytest.raises(EngineError, match="no such file") as caught:
        check_engine(built.path)
    assert "qvae build --mode static --resolution 1664x928" in caught.value.fix


def test_a_directory(built):
    built.path.unlink()
    built.path.mkdir()
    with pytest.raises(EngineError, match="is a directory, expected a file"):
        check_engine(built.path)


def test_a_symlink_loop(built):
    built.path.unlink()
    built.path.symlink_to(built.path.name)
    with pytest.raises(EngineError, match="symbolic links"):
        check_engine(built.path)


def test_a_symlink_to_an_engine_is_an_engine(built, tmp_path):
    elsewhere = tmp_path / "elsewhere.trt"
    built.path.rename(elsewhere)
    built.path.symlink_to(elsewhere)
    assert check_engine(built.path) == built.sidecar


def test_a_named_pipe_does_not_block(built):
    built.path.unlink()
    os.mkfifo(built.path)
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for a writer"))
    signal.alarm(10)
    try:
        with pytest.raises(EngineError, match="is a named pipe, expected a file"):
            check_engine(built.path)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_socket(built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    built.path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        (tmp_path / "s").rename(built.path)
        with pytest.raises(EngineError, match="cannot be read"):
            check_engine(built.path)


def test_a_name_that_is_too_long_or_no_name(tmp_path):
    for name, says in (("n" * 300 + ".trt", "name too long"), ("a\0b.trt", "null byte")):
        with pytest.raises(EngineError, match=says):
            check_engine(tmp_path / name)


@pytest.mark.parametrize("which", ["engine", "sidecar", "folder"])
def test_unreadable(open_folder, which):
    path = engine_path(open_folder, "encoder", "static", ".trt", SIZE)
    put_engine(path, make_sidecar(), engine_bytes())
    closed = {"engine": path, "sidecar": sidecar_path(path), "folder": path.parent}[which]

    def work() -> None:
        with pytest.raises(EngineError, match="Permission denied"):
            check_engine(path)

    closed.chmod(0)
    try:
        assert without_privileges(work) == 0
    finally:
        closed.chmod(0o755)
    check_engine(path)


def test_an_input_output_error_while_reading(built, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashing.hashlib, "file_digest", fail)
    with pytest.raises(EngineError, match="cannot be read: Input/output error"):
        check_engine(built.path)


# --- the sidecar ---


def test_no_sidecar(built):
    sidecar_path(built.path).unlink()
    for call in (check_engine, read_sidecar):
        with pytest.raises(
            ForeignEngineError, match=r"no sidecar \(vae_encoder.trt.json\)"
        ) as caught:
            call(built.path)
        assert "qvae build" in caught.value.fix


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format_version": 1}', "\0" * 100, '{"format_version": 1, "engine": 3}'],
)
def test_a_malformed_sidecar(built, text):
    sidecar_path(built.path).write_text(text)
    with pytest.raises(EngineError, match="malformed sidecar") as caught:
        check_engine(built.path)
    assert not isinstance(caught.value, StaleEngineError | ForeignEngineError)


def test_a_sidecar_of_a_newer_format(built):
    path = sidecar_path(built.path)
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(EngineError, match="format_version: 2, expected at most 1"):
        check_engine(built.path)


def test_the_sidecar_of_another_engine(built, tmp_path):
    other = engine_path(tmp_path, "encoder", "static", ".trt", SIZE)
    put_engine(other, make_sidecar(), engine_bytes(seed=2))
    shutil.copy(sidecar_path(other), sidecar_path(built.path))
    with pytest.raises(StaleEngineError, match="not the file that the sidecar describes"):
        check_engine(built.path)


def test_an_engine_and_its_sidecar_in_the_place_of_another(built, tmp_path):
    other = tmp_path / "vae_decoder.trt"
    shutil.copy(built.path, other)
    shutil.copy(sidecar_path(built.path), sidecar_path(other))
    with pytest.raises(StaleEngineError, match="other half of the VAE: found encoder"):
        check_engine(other, expected={"part": "decoder"})


def test_a_sidecar_that_is_a_directory_or_a_loop(built):
    path = sidecar_path(built.path)
    path.unlink()
    path.mkdir()
    with pytest.raises(EngineError, match="is a directory"):
        check_engine(built.path)
    path.rmdir()
    path.symlink_to(path.name)
    with pytest.raises(EngineError, match="symbolic links"):
        check_engine(built.path)


# --- another machine ---


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ({"flavour_version": "11.4.0.106"}, "found 10.16.1.11, expected 11.4.0.106"),
        ({"flavour": "tensorrt_rtx"}, "found tensorrt, expected tensorrt_rtx"),
        ({"gpu": "NVIDIA H100"}, "another GPU: found NVIDIA H200, expected NVIDIA H100"),
        ({"compute_capability": "12.0"}, "found 9.0, expected 12.0"),
        ({"weights_sha256": "e" * 64}, "other weights"),
    ],
)
def test_built_for_something_else(built, expected, says):
    with pytest.raises(StaleEngineError, match="not the engine asked for") as caught:
        check_engine(built.path, expected=expected)
    assert says in caught.value.what
    assert "qvae build --mode static --resolution 1664x928" in caught.value.fix


def test_every_difference_is_named_at_once(built):
    with pytest.raises(StaleEngineError) as caught:
        check_engine(built.path, expected={"gpu": "NVIDIA H100", "precision": "bf16"})
    assert len(caught.value.what.splitlines()) == 3
    assert "--precision bf16" in caught.value.fix
