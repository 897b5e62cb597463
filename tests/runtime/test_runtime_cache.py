"""Loaded engines: lazily, least recently used out, pinned in use."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
import torch
from doubles import FakeSession, engine_of, fixed

from qvae_trt.errors import EngineError
from qvae_trt.runtime.cache import EngineCache
from qvae_trt.runtime.engine import Engine

if TYPE_CHECKING:
    from pathlib import Path


class Shelf:
    """Engine files of 100 bytes, and what was loaded of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads: list[str] = []
        self.sessions: dict[str, list[FakeSession]] = {}

    def lease(self, cache: EngineCache, name: str):
        path = self.folder / name
        if not path.exists():
            path.write_bytes(b"x" * 100)

        def load() -> Engine:
            self.loads.append(name)
            session = FakeSession(fixed(1, 3, 1, 8, 8))
            self.sessions.setdefault(name, []).append(session)
            return engine_of(session, path)

        return cache.lease(path, load)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def names(cache: EngineCache) -> list[str]:
    return [path.name for path, _ in cache.loaded]


def size(cache: EngineCache) -> int:
    return sum(held for _, held in cache.loaded)


def test_an_engine_is_loaded_once_and_kept(shelf):
    cache = EngineCache()
    for _ in range(3):
        with shelf.lease(cache, "a") as engine:
            assert engine.run(torch.zeros(1, 3, 1, 8, 8)).shape == (1, 2, 1, 8, 8)
    with shelf.lease(cache, "b"):
        pass
    assert shelf.loads == ["a", "b"]
    assert size(cache) == 200


def test_past_the_budget_the_least_recently_used_goes(shelf):
    cache = EngineCache(budget_bytes=250)
    for name in ("a", "b", "a", "c"):
        with shelf.lease(cache, name):
            assert size(cache) <= 250
    assert names(cache) == ["a", "c"]
    assert shelf.sessions["b"][0].closed
    assert not shelf.sessions["a"][0].closed


def test_room_is_made_before_loading(shelf):
    cache = EngineCache(budget_bytes=100)
    with shelf.lease(cache, "a"):
        pass
    seen = []
    with (
        cache.lease(
            shelf.folder / "a2",
            lambda: (seen.append(shelf.sessions["a"][0].closed), _engine(shelf, "a2"))[1],
        )
        if (shelf.folder / "a2").write_bytes(b"x" * 100)
        else None
    ):
        pass
    assert seen == [True]


def _engine(shelf: Shelf, name: str) -> Engine:
    return engine_of(FakeSession(fixed(1, 3, 1, 8, 8)), shelf.folder / name)


def test_an_engine_in_use_is_never_closed(shelf):
    cache = EngineCache(budget_bytes=100)
    with shelf.lease(cache, "a"):
        with shelf.lease(cache, "b"):
            assert not shelf.sessions["a"][0].closed
            assert cache.release_idle() == 0
        assert not shelf.sessions["a"][0].closed
    assert size(cache) <= 100, "once idle, the budget holds again"


def test_an_engine_that_a_graph_holds_is_never_closed(shelf):
    cache = EngineCache(budget_bytes=100)
    with shelf.lease(cache, "a") as engine:
        engine.captured = True
    with shelf.lease(cache, "b"):
        pass
    cache.release_idle()
    assert names(cache) == ["a"]


def test_a_file_that_comes_back_replaces_the_one_that_replaced_it(shelf, tmp_path):
    cache, versions = EngineCache(), [tmp_path / "v1", tmp_path / "v2"]
    for version in versions:
        version.write_bytes(version.name.encode() * 50)
    current = shelf.folder / "e"

    def point_to(version) -> None:
        current.unlink(missing_ok=True)
        current.symlink_to(version)
        with shelf.lease(cache, "e"):
            pass

    point_to(versions[0])
    with shelf.lease(cache, "e"):
        for version in reversed(versions):
            point_to(version)
    first, second = shelf.sessions["e"]
    assert (first.closed, second.closed) == (False, True)


def test_what_is_idle_is_closed(shelf):
    cache = EngineCache()
    for name in ("a", "b"):
        with shelf.lease(cache, name):
            pass
    assert cache.release_idle(shelf.folder / "a") == 100
    assert names(cache) == ["b"]
    assert cache.release_idle() == 100
    assert names(cache) == []
    with shelf.lease(cache, "a"):
        pass
    assert shelf.loads == ["a", "b", "a"]


def test_a_failed_load_leaves_nothing_and_the_next_one_may_succeed(shelf):
    cache = EngineCache()

    def broken() -> Engine:
        raise EngineError("broken")

    with pytest.raises(EngineError, match="broken"), cache.lease(shelf.folder / "a", broken):
        pass
    assert cache.loaded == []
    with shelf.lease(cache, "a"):
        assert names(cache) == ["a"]


def test_threads_load_an_engine_once_and_different_ones_at_the_same_time(shelf):
    cache = EngineCache()
    started = threading.Barrier(2, timeout=10)

    def load(name: str) -> Engine:
        shelf.loads.append(name)
        started.wait()  # both loads must be under way for either to end
        return _engine(shelf, name)

    for name in "ab":
        (shelf.folder / name).write_bytes(b"x")

    def use(name: str) -> None:
        with cache.lease(shelf.folder / name, lambda: load(name)):
            time.sleep(0.01)

    threads = [threading.Thread(target=use, args=(name,)) for name in ("a", "a", "a", "b", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(shelf.loads) == ["a", "b"]


def test_threads_and_evictions_never_meet_a_closed_engine(shelf):
    cache = EngineCache(budget_bytes=200)
    wrong: list[BaseException] = []

    def use(seed: int) -> None:
        try:
            for i in range(60):
                with shelf.lease(cache, "abcd"[(i * seed) % 4]) as engine:
                    y = engine.run(torch.full((1, 3, 1, 8, 8), float(i)))
                    assert float(y[0, 0, 0, 0, 0]) == i
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert size(cache) <= 200
    live = [s for sessions in shelf.sessions.values() for s in sessions if not s.closed]
    assert len(live) == len(cache.loaded), "what left the cache was closed"
