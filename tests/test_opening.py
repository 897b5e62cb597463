"""Which engines may be opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ort_engines
import pytest

from qvae_trt import backends, store
from qvae_trt.errors import EngineError, ForeignEngineError, StaleEngineError
from qvae_trt.opening import Wanted, check, open_engine
from qvae_trt.runtime.engine import Engine
from qvae_trt.store import EngineFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> EngineFile:
    """A static decoder that is in order, of its own."""
    shared = ort_engines.shared(tmp_path_factory)
    source, *_ = [
        f for f in store.find_engines(shared) if (f.part, f.mode) == ("decoder", "static")
    ]
    path = tmp_path / source.path.name
    path.write_bytes(source.path.read_bytes())
    store.sidecar_path(path).write_bytes(store.sidecar_path(source.path).read_bytes())
    return EngineFile(path, source.part, source.mode, source.resolution)


def test_an_engine_in_order_opens(engine):
    weights = ort_engines.tiny().weights_sha256
    wanted = Wanted(backend=backends.get("onnxruntime"), weights_sha256=weights)
    opened = open_engine(engine, wanted)
    assert opened.sidecar is not None
    assert opened.files == store.signature(engine.path)
    assert opened.session.inspect()["operations"]
    opened.session.close()


def test_what_was_built_for_something_else_does_not_open(engine):
    backend = backends.get("onnxruntime")
    with pytest.raises(StaleEngineError, match="built from other weights"):
        open_engine(engine, Wanted(backend=backend, weights_sha256="0" * 64))
    misplaced = EngineFile(engine.path, "encoder", "static", engine.resolution)
    with pytest.raises(StaleEngineError, match="the other half"):
        open_engine(misplaced, Wanted(backend=backend))
    assert check(misplaced.path) is not None


def test_an_engine_of_unknown_origin_opens_if_that_is_allowed(engine):
    store.sidecar_path(engine.path).unlink()
    with pytest.raises(ForeignEngineError):
        open_engine(engine)
    allowed = Wanted(allow_foreign=True)
    opened = open_engine(engine, allowed)
    assert opened.sidecar is None
    opened.session.close()
    with pytest.warns(UserWarning, match="loaded because it was asked for"):
        Engine.open(engine, allowed).close()


def test_a_damaged_engine_does_not_open(engine):
    engine.path.write_bytes(engine.path.read_bytes()[:-1])
    with pytest.raises(StaleEngineError, match="cut short"):
        open_engine(engine)
    engine.path.unlink()
    with pytest.raises(EngineError, match="no such file"):
        open_engine(engine)
