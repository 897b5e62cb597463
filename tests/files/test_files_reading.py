"""The hash of a file is remembered until the file may have changed."""

from __future__ import annotations

import os
import shutil
import time
from types import SimpleNamespace

import pytest
from store_cases import engine_bytes, make_sidecar, put_engine

from qvae_trt.errors import StaleEngineError
from qvae_trt.files import reading as hashing
from qvae_trt.files.reading import sha256_file, stamp_of
from qvae_trt.store import check_engine, sidecar_path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The files that were hashed, with hashes remembered at once."""
    seen: list[str] = []
    digest = hashing.hashlib.file_digest

    def counted(file, name):
        seen.append(file.name if isinstance(file.name, str) else str(file.name))
        return digest(file, name)

    monkeypatch.setattr(hashing.hashlib, "file_digest", counted)
    monkeypatch.setattr(hashing, "SETTLED_NS", -1)
    return seen


def test_an_engine_is_hashed_once(built, reads):
    for _ in range(3):
        check_engine(built.path)
    assert len(reads) == 1


def test_every_change_of_the_file_hashes_it_again(built, reads):
    check_engine(built.path)
    for change in (
        lambda: os.utime(built.path, ns=(1, 1)),
        lambda: built.path.chmod(0o600),  # ctime
        lambda: shutil.copy2(built.path, built.path.with_name("x")),
    ):
        change()
        check_engine(built.path)
    assert len(reads) == 3
    built.path.with_name("x").replace(built.path)  # another inode, same time stamp
    check_engine(built.path)
    assert len(reads) == 4


@pytest.mark.parametrize("field", ["st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns"])
def test_any_one_of_these_makes_another_file(built, field):
    names = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
    status = SimpleNamespace(**{name: getattr(built.path.stat(), name) for name in names})
    file = SimpleNamespace(stat=lambda: status)
    before = stamp_of(file)
    setattr(status, field, getattr(status, field) + 1)
    assert stamp_of(file) != before


def test_a_change_that_hides_its_time_is_seen(built, reads):
    check_engine(built.path)
    before = built.path.stat()
    time.sleep(0.02)  # past the granularity of ctime
    content = bytearray(built.content)
    content[7] ^= 0x80
    built.path.write_bytes(content)
    os.utime(built.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert built.path.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(StaleEngineError):
        check_engine(built.path)


def test_a_file_that_changed_just_now_is_not_remembered(built, reads, monkeypatch):
    monkeypatch.setattr(hashing, "SETTLED_NS", 3_600_000_000_000)
    sha256_file(built.path)
    sha256_file(built.path)
    assert len(reads) == 2


@pytest.mark.parametrize("year_ns", [0, 4_000_000_000 * 10**9])
def test_the_clock_set_back_or_forward(built, year_ns, monkeypatch, reads):
    os.utime(built.path, ns=(year_ns, year_ns))
    os.utime(sidecar_path(built.path), ns=(4 * 10**18 - year_ns, 4 * 10**18 - year_ns))
    assert check_engine(built.path) == built.sidecar
    # The clock of this process, years before the engine was built.
    monkeypatch.setattr(time, "time_ns", lambda: 10**9)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    assert check_engine(built.path) == built.sidecar
    second = put_engine(built.path, make_sidecar(), engine_bytes(seed=3))
    assert check_engine(built.path) == second
    os.utime(built.path, ns=(year_ns, year_ns))
    assert check_engine(built.path) == second
    count = len(reads)
    assert check_engine(built.path) == second
    assert len(reads) == count, "what did not change is not read again, whatever the clock"
    # A change after the clock was set: its time may be before that of the file it changes.
    for change_ns in (year_ns - 3600 * 10**9, year_ns + 1, 10**9):
        os.utime(built.path, ns=(year_ns, year_ns))
        put_engine(built.path, make_sidecar(), engine_bytes(seed=3))
        os.utime(built.path, ns=(year_ns, year_ns))
        check_engine(built.path)
        built.path.write_bytes(engine_bytes(seed=4))
        os.utime(built.path, ns=(change_ns, change_ns))
        with pytest.raises(StaleEngineError):
            check_engine(built.path)
