"""What a power cut may leave of a write: every state that the disk may then be in is whole.

A disk keeps the content of a file that was synced, and of another one nothing. Of the renames and
removals in a folder since the folder was last synced it keeps any, in any selection.
"""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from store_cases import engine_bytes, make_sidecar, put_engine

from qvae_trt.files.writing import replace_file
from qvae_trt.store import check_engine, lock_engine, sidecar_path
from qvae_trt.store.sidecar import next_sidecar_path

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD, NEW, THIRD = engine_bytes(), engine_bytes(5000, seed=9), engine_bytes(6000, seed=11)
Names = dict[str, int]


@dataclass
class Disk:
    """Of one folder: what it holds for sure, and what it may hold besides, at every moment."""

    folder: Path
    names: Names = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    pending: list[dict[str, int | None]] = field(default_factory=list)
    moments: list[tuple[Names, list[dict[str, int | None]], dict[int, bytes]]] = field(
        default_factory=list
    )
    open_files: list[int] = field(default_factory=list)  # so that no inode is used again

    def keep(self, path: Path) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        self.open_files.append(descriptor)
        return os.fstat(descriptor).st_ino

    def sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            if path == self.folder:
                self.names = applied(self.names, self.pending)
                self.pending = []
        else:
            self.contents[self.keep(path)] = path.read_bytes()
        self.note()

    def change(self, **names: int | None) -> None:
        self.pending.append(names)
        self.note()

    def note(self) -> None:
        self.moments.append((dict(self.names), list(self.pending), dict(self.contents)))

    def states(self, *, last: bool = False) -> list[dict[str, bytes]]:
        """What may be there after a power cut: at any moment, or now."""
        found: list[dict[str, bytes]] = []
        for names, pending, contents in self.moments[-1:] if last else self.moments:
            for count in range(len(pending) + 1):
                for some in itertools.combinations(pending, count):
                    left = applied(names, some)
                    state = {name: contents.get(inode, b"") for name, inode in left.items()}
                    if state not in found:
                        found.append(state)
        return found


def applied(names: Names, changes: object) -> Names:
    left: dict[str, int | None] = dict(names)
    for change in changes:  # type: ignore[attr-defined]
        left.update(change)
    return {name: inode for name, inode in left.items() if inode is not None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "engines" / "vae_encoder.trt"
    path.parent.mkdir()
    return path


@pytest.fixture
def disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk under an engine, from now on; what was there is on it for sure."""
    disk = Disk(path.parent)
    replace, unlink = os.replace, os.unlink

    def on_replace(source: object, target: object) -> None:
        inode = disk.keep(Path(str(source)))
        replace(source, target)
        disk.change(**{Path(str(source)).name: None, Path(str(target)).name: inode})

    def on_unlink(name: object, **how: object) -> None:
        unlink(name, **how)
        disk.change(**{Path(str(name)).name: None})

    monkeypatch.setattr(os, "fsync", disk.sync)
    monkeypatch.setattr(os, "replace", on_replace)
    monkeypatch.setattr(os, "unlink", on_unlink)
    yield disk
    for descriptor in disk.open_files:
        os.close(descriptor)


def begin(disk: Disk) -> None:
    """All that is there is on the disk."""
    disk.moments, disk.pending = [], []
    disk.names = {file.name: disk.keep(file) for file in disk.folder.iterdir()}
    disk.contents = {inode: (disk.folder / n).read_bytes() for n, inode in disk.names.items()}
    disk.note()


def engines_in(states: list[dict[str, bytes]], place: Path) -> set[bytes]:
    """The engines that are found in these states; each must be whole, with its own sidecar."""
    found = set()
    for number, state in enumerate(states):
        folder = place / str(number)
        folder.mkdir(parents=True)
        for name, content in state.items():
            (folder / name).write_bytes(content)
        if "vae_encoder.trt" in state:
            assert check_engine(folder / "vae_encoder.trt").engine_bytes
            found.add(state["vae_encoder.trt"])
        else:
            found.add(b"")
    return found


def test_power_cut_while_an_engine_is_replaced(path, disk, tmp_path):
    put_engine(path, make_sidecar(), OLD)
    begin(disk)
    put_engine(path, make_sidecar(), NEW)
    assert len(disk.states()) > 3
    assert engines_in(disk.states(), tmp_path / "any") == {OLD, NEW}
    assert engines_in(disk.states(last=True), tmp_path / "last") == {NEW}
    put_engine(path, make_sidecar(), THIRD)
    assert engines_in(disk.states(), tmp_path / "more") == {OLD, NEW, THIRD}
    assert engines_in(disk.states(last=True), tmp_path / "end") == {THIRD}


def test_power_cut_while_a_first_engine_is_written(path, disk, tmp_path):
    begin(disk)
    put_engine(path, make_sidecar(), NEW)
    assert engines_in(disk.states(), tmp_path / "any") == {b"", NEW}
    assert engines_in(disk.states(last=True), tmp_path / "last") == {NEW}


def test_power_cut_while_a_replacement_is_finished(path, disk, tmp_path):
    """One that a kill cut short, and the write that comes after it."""
    put_engine(path, make_sidecar(), OLD)
    old = sidecar_path(path).read_bytes()
    put_engine(path, make_sidecar(), NEW)
    sidecar_path(path).rename(next_sidecar_path(path))
    sidecar_path(path).write_bytes(old)
    begin(disk)
    with lock_engine(path):
        pass
    assert engines_in(disk.states(), tmp_path / "any") == {NEW}
    put_engine(path, make_sidecar(), THIRD)
    assert engines_in(disk.states(), tmp_path / "more") == {NEW, THIRD}


def test_power_cut_while_a_result_is_replaced(path, disk):
    table = path.with_name("latency.md")
    table.write_text("old")
    begin(disk)
    with replace_file(table) as temporary:
        temporary.write_text("new")
    assert {state["latency.md"] for state in disk.states()} == {b"old", b"new"}
    assert {state["latency.md"] for state in disk.states(last=True)} == {b"new"}
