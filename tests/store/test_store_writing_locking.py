"""Two builders of one engine do the work once."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from store_cases import engine_bytes, in_child, make_sidecar, put_engine

from qvae_trt.errors import EngineError, StoreError
from qvae_trt.files.writing import staged
from qvae_trt.store import check_engine, lock_engine, write_engine
from qvae_trt.store.writing import lock_path, try_lock


def _build(path: Path, log: Path, *, seconds: float = 0.0) -> None:
    """As `qvae build` does it: lock, look again, work, write."""
    with lock_engine(path, timeout_s=30):
        try:
            check_engine(path)
        except EngineError:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            with staged(path) as temporary:
                temporary.write_bytes(engine_bytes(20_000)[:10_000])
                time.sleep(seconds)
                temporary.write_bytes(engine_bytes(20_000))
                write_engine(path, make_sidecar(), temporary)


def _fork(work: object) -> int:
    process = os.fork()
    if process == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return process


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_a_lock_that_the_file_system_refuses_leaves_no_open_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(StoreError), lock_engine(tmp_path / "vae_encoder.trt"):
            pass
    assert len(list(descriptors.iterdir())) == before


def test_two_processes_build_once(tmp_path):
    path, log = tmp_path / "e" / "vae_encoder.trt", tmp_path / "log"
    builders = [_fork(lambda: _build(path, log, seconds=0.2)) for _ in range(4)]
    assert [_wait(builder) for builder in builders] == [0, 0, 0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert check_engine(path).engine_bytes == 20_000
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_two_threads_build_once(tmp_path):
    path, log = tmp_path / "vae_encoder.trt", tmp_path / "log"
    builders = [
        threading.Thread(target=_build, args=(path, log), kwargs={"seconds": 0.1}) for _ in range(4)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert len(log.read_text().splitlines()) == 1
    check_engine(path)


def test_many_writers_leave_one_whole_engine(tmp_path):
    path = tmp_path / "e" / "vae_encoder.trt"

    def write(seed: int) -> None:
        for turn in range(5):
            put_engine(path, make_sidecar(), engine_bytes(3000 + turn, seed=seed))

    writers = [_fork(lambda seed=seed: write(seed)) for seed in range(4)]
    while any(
        os.waitid(os.P_PID, w, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for w in writers
    ):
        if path.exists():
            check_engine(path)
    assert [_wait(writer) for writer in writers] == [0] * 4
    assert check_engine(path).engine_bytes == 3004
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_a_killed_builder_frees_the_lock(tmp_path):
    path, log = tmp_path / "e" / "vae_encoder.trt", tmp_path / "log"
    builder = _fork(lambda: _build(path, log, seconds=60))
    _until(log.exists)
    _until(lambda: len(list(path.parent.iterdir())) == 2)
    os.kill(builder, signal.SIGKILL)
    assert _wait(builder) == -signal.SIGKILL
    _build(path, log)
    assert len(log.read_text().splitlines()) == 2
    check_engine(path)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_a_lock_holds_on_a_disk_too_full_for_its_holders_name(tmp_path, monkeypatch):
    path = tmp_path / "vae_encoder.trt"
    refused: list[StoreError] = []

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def try_elsewhere() -> None:
        try:
            with lock_engine(path, timeout_s=0.1):
                pass
        except StoreError as error:
            refused.append(error)

    for held in (True, False):
        with monkeypatch.context() as patched, ExitStack() as stack:
            patched.setattr(os, "write", full)
            if held:
                stack.enter_context(lock_engine(path))
            other = threading.Thread(target=try_elsewhere)
            other.start()
            other.join()
    (error,) = refused
    assert "locked by another process" in error.what


def _until(true: object) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_lock_that_is_not_freed_says_who_holds_it(tmp_path):
    path = tmp_path / "vae_encoder.trt"
    ready, done = os.pipe(), os.pipe()

    def hold() -> None:
        with lock_engine(path):
            os.write(ready[1], b"x")
            os.read(done[0], 1)

    holder = _fork(hold)
    os.read(ready[0], 1)
    told: list[str] = []
    try:
        with (
            pytest.raises(StoreError, match=f"locked by process {holder} on ") as caught,
            lock_engine(path, timeout_s=0.2, on_wait=told.append),
        ):
            pass
    finally:
        os.write(done[1], b"x")
        assert _wait(holder) == 0
        for descriptor in (*ready, *done):
            os.close(descriptor)
    assert "wait for that build" in caught.value.fix
    assert len(told) == 1
    assert str(holder) in told[0]
    with lock_engine(path, timeout_s=0):
        pass


def test_a_lock_is_per_engine(tmp_path):
    def other() -> None:
        with lock_engine(tmp_path / "b.trt", timeout_s=0):
            pass

    with lock_engine(tmp_path / "a.trt"):
        assert in_child(other) == 0


def test_one_engine_by_two_names_of_its_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def other() -> None:
        with (
            pytest.raises(StoreError, match="locked by"),
            lock_engine(tmp_path / "link" / "a.trt", timeout_s=0),
        ):
            pass

    with lock_engine(tmp_path / "real" / "a.trt"):
        assert _wait(_fork_fresh(other)) == 0
        other()


def _fork_fresh(work: object) -> int:
    """A fork in a new thread: the child's thread holds none of this one's locks."""
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(_fork(work)))
    thread.start()
    thread.join()
    return result[0]


def test_the_lock_is_freed_when_the_work_fails(tmp_path):
    path = tmp_path / "a.trt"
    with pytest.raises(RuntimeError), lock_engine(path):
        raise RuntimeError
    with lock_engine(path, timeout_s=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_is_a_symlink_is_not_followed(tmp_path):
    path, victim = tmp_path / "a.trt", tmp_path / "victim"
    victim.write_text("mine")
    lock_path(path).symlink_to(victim)
    with pytest.raises(StoreError, match="cannot lock"), lock_engine(path):
        pass
    assert victim.read_text() == "mine"


def test_a_clock_set_back_does_not_stop_a_wait(tmp_path, monkeypatch):
    path = tmp_path / "a.trt"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with lock_engine(path):
        thread_error: list[StoreError] = []

        def wait() -> None:
            try:
                with lock_engine(path, timeout_s=0.1):
                    pass
            except StoreError as error:
                thread_error.append(error)

        waiter = threading.Thread(target=wait, daemon=True)
        waiter.start()
        waiter.join(10)
        assert len(thread_error) == 1, "it waits for ever"


def test_a_lock_on_a_file_that_is_gone_is_no_lock(tmp_path):
    # A waiter may hold the file that the last holder unlinked, while a third has made a new one.
    path = lock_path(tmp_path / "a.trt")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert try_lock(descriptor, path)
        path.unlink()
        assert not try_lock(descriptor, path)
        path.touch()
        assert not try_lock(descriptor, path)
    finally:
        os.close(descriptor)
