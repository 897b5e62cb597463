"""An engine is replaced whole or not at all, whatever stops the writer."""

from __future__ import annotations

import os
import resource
import signal
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from store_cases import (
    SIZE,
    engine_bytes,
    in_child,
    make_sidecar,
    put_engine,
    without_privileges,
)

from qvae_trt import store
from qvae_trt.errors import StaleEngineError, StoreError
from qvae_trt.files.writing import check_writable, staged, write_text
from qvae_trt.profiles import engine_path
from qvae_trt.store import (
    check_engine,
    lock_engine,
    read_sidecar,
    sidecar_path,
    write_engine,
)
from qvae_trt.store.sidecar import next_sidecar_path

NEW = engine_bytes(5000, seed=9)


def _files(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


PAIR = ["vae_encoder.trt", "vae_encoder.trt.json"]


# --- in order ---


def test_from_bytes(built):
    assert _files(built.path.parent) == PAIR
    assert built.path.read_bytes() == built.content
    assert built.sidecar.engine_bytes == len(built.content)
    assert built.sidecar.created.endswith("+00:00")
    assert check_engine(built.path) == built.sidecar


def test_from_a_staged_file_moves_it(built):
    with lock_engine(built.path), staged(built.path) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_bytes(NEW)
        inode = temporary.stat().st_ino
        write_engine(built.path, make_sidecar(), temporary)
    assert built.path.stat().st_ino == inode
    assert built.path.read_bytes() == NEW
    assert _files(built.path.parent) == PAIR


def test_a_staged_file_of_a_relative_folder_is_moved_too(tmp_path, monkeypatch):
    """A copy would take twice the disk."""
    monkeypatch.chdir(tmp_path)
    engine = Path("engines", "vae_encoder.trt")
    with lock_engine(engine), staged(engine) as temporary:
        temporary.write_bytes(NEW)
        inode = temporary.stat().st_ino
        write_engine(engine, make_sidecar(), temporary)
    assert engine.stat().st_ino == inode
    assert _files(tmp_path / "engines") == PAIR


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_get_the_mode_that_the_umask_says(tmp_path, mask, mode):
    path = tmp_path / "vae_encoder.trt"
    before = os.umask(mask)
    try:
        put_engine(path, make_sidecar(), NEW)
    finally:
        os.umask(before)
    for file in (path, sidecar_path(path)):
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_temporary_files_are_private_while_they_are_written(built):
    def work() -> None:
        modes: set[int] = set()

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event == "os.rename":
                modes.update(
                    stat.S_IMODE(entry.stat().st_mode)
                    for entry in built.path.parent.iterdir()
                    if entry.name.endswith(".tmp") and str(entry) != str(arguments[0])
                )

        sys.addaudithook(hook)
        put_engine(built.path, make_sidecar(), NEW)
        assert modes == {0o600}

    assert in_child(work) == 0


def test_a_symlink_is_replaced_and_what_it_names_is_not(built, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    built.path.unlink()
    built.path.symlink_to(elsewhere)
    put_engine(built.path, make_sidecar(), NEW)
    assert elsewhere.read_bytes() == b"mine"
    assert not built.path.is_symlink()
    check_engine(built.path)


@pytest.mark.parametrize("name", ["with space", "ünï漢", "-dash", "a'b\"c", "n" * 200])
def test_names_of_folders(tmp_path, name):
    path = engine_path(tmp_path / name, "encoder", "static", ".trt", SIZE)
    sidecar = put_engine(path, make_sidecar(), NEW)
    assert check_engine(path) == sidecar


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sidecar = put_engine(Path("vae_encoder.trt"), make_sidecar(), NEW)
    assert check_engine(Path("vae_encoder.trt")) == sidecar
    assert _files(tmp_path) == PAIR


# --- killed ---


def _kill_at(moment: int, folder: Path, source: bytes | None, path: Path) -> int:
    """Write in a child that is killed at the n-th touch of a file in the folder."""

    def work() -> None:
        left = moment

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event not in _TOUCHES or not any(str(folder) in str(a) for a in arguments):
                return
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        put_engine(path, make_sidecar(), source or NEW)

    return in_child(work)


_TOUCHES = {"open", "os.rename", "os.remove", "os.chmod", "os.listdir", "os.scandir"}


def _moments(tmp_path: Path) -> int:
    """How often a write touches the folder."""
    path = tmp_path / "count" / "vae_encoder.trt"
    put_engine(path, make_sidecar(), engine_bytes())

    def work() -> None:  # in a child, since a hook cannot be taken off again
        touches: list[str] = []

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            if event in _TOUCHES and any(str(path.parent) in str(a) for a in arguments):
                touches.append(event)

        sys.addaudithook(hook)
        put_engine(path, make_sidecar(), NEW)
        os._exit(len(touches))

    return in_child(work)


def test_killed_at_every_moment_of_a_write(tmp_path):
    moments = _moments(tmp_path)
    assert moments >= 10
    outcomes = []
    for moment in range(moments):
        path = tmp_path / str(moment) / "vae_encoder.trt"
        old = put_engine(path, make_sidecar(), engine_bytes())
        assert _kill_at(moment, path.parent, None, path) == -signal.SIGKILL
        # A reader, before anything is cleaned: one of the two engines, whole, with its own sidecar.
        found = check_engine(path)
        assert read_sidecar(path) == found
        assert path.read_bytes() == (engine_bytes() if found == old else NEW)
        assert found.engine_bytes == path.stat().st_size
        outcomes.append(found == old)
        # The next writer, or whoever only takes the lock, cleans up and changes nothing else.
        with lock_engine(path, timeout_s=1):
            pass
        assert _files(path.parent) == PAIR
        assert check_engine(path) == found
        assert store.sidecar.parse_sidecar(sidecar_path(path).read_bytes(), path=path) == found
    assert outcomes == sorted(outcomes, reverse=True)  # once the new one is there it stays
    assert True in outcomes
    assert False in outcomes


def test_killed_at_every_moment_of_a_first_write(tmp_path):
    for moment in range(_moments(tmp_path)):
        path = tmp_path / str(moment) / "vae_encoder.trt"
        path.parent.mkdir()
        _kill_at(moment, path.parent, None, path)
        if path.exists():
            assert check_engine(path).engine_bytes == len(NEW)
        with lock_engine(path, timeout_s=1):
            pass
        assert _files(path.parent) in ([], PAIR)


@pytest.mark.parametrize("written", [0, 1, 2500, 4999])
def test_killed_while_bytes_are_written(built, written):
    def work() -> None:
        with lock_engine(built.path), staged(built.path) as temporary:
            temporary.write_bytes(NEW[:written])
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert len(_files(built.path.parent)) == 4  # the pair, a lock that nobody holds, a part
    assert check_engine(built.path) == built.sidecar
    second = put_engine(built.path, make_sidecar(), NEW)
    assert check_engine(built.path) == second
    assert _files(built.path.parent) == PAIR


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal(built, number):
    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with lock_engine(built.path), staged(built.path) as temporary:
            temporary.write_bytes(NEW[:100])
            os.kill(os.getpid(), number)

    status = in_child(work)
    assert status in (1, -signal.SIGTERM)
    assert check_engine(built.path) == built.sidecar
    if number == signal.SIGINT:
        assert _files(built.path.parent) == PAIR
    put_engine(built.path, make_sidecar(), NEW)
    assert _files(built.path.parent) == PAIR


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_stopped_at_each_rename(built, monkeypatch, step, error):
    rename, calls = Path.replace, []

    def stop(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == step:
            raise error
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stop)
        with pytest.raises((KeyboardInterrupt, StoreError)):
            put_engine(built.path, make_sidecar(), NEW)
    found = check_engine(built.path)
    if step < 3:
        assert found == built.sidecar
        assert _files(built.path.parent) == PAIR
    else:
        assert found.engine_bytes == len(NEW)
        with lock_engine(built.path):
            pass
        assert check_engine(built.path) == found
        assert _files(built.path.parent) == PAIR


def test_a_reader_sees_through_a_replacement_that_was_cut_short(built):
    # New engine, old sidecar, the new one waiting: as a kill between the two renames leaves it.
    new = replace(built.sidecar, engine_bytes=len(NEW), engine_sha256=_sha256(NEW))
    next_sidecar_path(built.path).write_text(new.to_json())
    assert check_engine(built.path) == built.sidecar
    built.path.write_bytes(NEW)
    assert check_engine(built.path) == new
    assert read_sidecar(built.path) == new
    built.path.write_bytes(NEW[:-1] + b"x")
    with pytest.raises(StaleEngineError):
        check_engine(built.path)


@pytest.mark.parametrize("text", ["", "{}", "directory"])
def test_a_waiting_sidecar_that_is_none_is_ignored(built, text):
    path = next_sidecar_path(built.path)
    if text == "directory":
        path.symlink_to(path.name)
    else:
        path.write_text(text)
    assert check_engine(built.path) == built.sidecar
    with lock_engine(built.path):
        pass
    assert _files(built.path.parent) == PAIR


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_readers_see_one_engine_or_the_other_while_it_is_replaced(built):
    stop = threading.Event()
    seen: set[str] = set()
    failed: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(check_engine(built.path).engine_sha256)
            except BaseException as error:  # noqa: BLE001 - reported below
                failed.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    contents = [engine_bytes(seed=1), engine_bytes(seed=2)]
    for turn in range(40):
        put_engine(built.path, make_sidecar(), contents[turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert failed == []
    assert seen <= {_sha256(content) for content in contents}


# --- refused ---


@pytest.mark.parametrize("size", [50_000, 100_000, 180_000, 250_000, 258_000, 262_144, 1_000_000])
def test_a_full_disk(small_disk, size):
    # 256 KiB hold the old engine (40 KB) and, only at the smaller sizes, the new one beside it.
    folder, mounted = small_disk
    path = folder / "vae_encoder.trt"
    old = put_engine(path, make_sidecar(), engine_bytes(40_000))
    new = bytes(size)

    def work() -> None:
        if not mounted:  # no rights to mount a small one: limit the file instead
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            put_engine(path, make_sidecar(), new)
        except StoreError as error:
            full = "No space left on device (" in error.what and "bytes are free" in error.what
            assert full or "File too large" in error.what
            assert "--engine-dir DIR" in (error.fix or "")
            os._exit(7)

    status = in_child(work)
    assert status == (0 if size < 200_000 else 7)
    found = check_engine(path)
    assert found.engine_bytes == (size if status == 0 else old.engine_bytes)
    assert _files(folder) == PAIR


def test_a_disk_that_holds_the_engine_and_not_its_sidecar(built, monkeypatch):
    write = Path.write_text

    def fail(path: Path, *arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", fail)
        with pytest.raises(StoreError, match=r"No space left on device .* bytes are free"):
            put_engine(built.path, make_sidecar(), NEW)
    assert Path.write_text is write
    assert _files(built.path.parent) == PAIR
    assert check_engine(built.path) == built.sidecar


def test_a_limit_on_file_sizes(built):
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))
        with pytest.raises(StoreError, match="File too large") as caught:
            put_engine(built.path, make_sidecar(), NEW)
        assert "ulimit -f" in caught.value.fix

    assert in_child(work) == 0
    assert check_engine(built.path) == built.sidecar
    assert _files(built.path.parent) == PAIR


@pytest.mark.parametrize("first", [True, False])
def test_a_read_only_folder(open_folder, first):
    path = open_folder / "engines" / "vae_encoder.trt"
    if first:
        path.parent.mkdir()
    else:
        old = put_engine(path, make_sidecar(), engine_bytes())
    path.parent.chmod(0o555)

    def work() -> None:
        for call in (
            lambda: put_engine(path, make_sidecar(), NEW),
            lambda: lock_engine(path).__enter__(),
        ):
            with pytest.raises(StoreError, match="Permission denied") as caught:
                call()
            assert f"read and write {path.parent}, or" in caught.value.fix
        if not first:
            assert check_engine(path) == old

    assert without_privileges(work) == 0
    assert _files(path.parent) == ([] if first else PAIR)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    for folder in ("file", "loop", "n" * 300, "a\0b"):
        with pytest.raises(StoreError, match="cannot make the folder"):
            put_engine(tmp_path / folder / "vae_encoder.trt", make_sidecar(), NEW)
    assert _files(tmp_path) == ["file", "loop"]


@pytest.mark.parametrize("name", PAIR)
def test_a_directory_in_the_place_of_a_file(built, name):
    path = built.path.with_name(name)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="is a directory, expected a file"):
        put_engine(built.path, make_sidecar(), NEW)
    assert _files(built.path.parent) == PAIR


@pytest.mark.parametrize("name", PAIR)
def test_a_named_pipe_is_not_replaced(built, name):
    path = built.path.with_name(name)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StoreError, match="is a named pipe, expected a file"):
        put_engine(built.path, make_sidecar(), NEW)
    with pytest.raises(StoreError, match="is a named pipe, expected a file"):
        write_text(path, "text")
    with pytest.raises(StoreError, match="is a named pipe, expected a file"):
        check_writable(path)
    assert path.is_fifo()
    assert _files(path.parent) == PAIR


def test_a_name_without_room_for_the_sidecars(tmp_path):
    with pytest.raises(StoreError, match="File name too long"):
        put_engine(tmp_path / ("n" * 250 + ".trt"), make_sidecar(), NEW)
    assert _files(tmp_path) == []


def test_an_empty_engine_is_no_engine(built):
    with pytest.raises(StoreError, match="is empty"):
        put_engine(built.path, make_sidecar(), b"")
    assert check_engine(built.path) == built.sidecar
