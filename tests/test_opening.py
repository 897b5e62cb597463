"""What may be opened for what: the same engines serve, are verified and are timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ort_engines
import pytest

from qvae_trt import backends, store
from qvae_trt.errors import EngineError, ForeignEngineError, StaleEngineError
from qvae_trt.opening import Purpose, Wanted, check, open_engine
from qvae_trt.store import EngineFile

if TYPE_CHECKING:
    from pathlib import Path

RUNS = (Purpose.SERVE, Purpose.VERIFY, Purpose.BENCH)


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


@pytest.mark.parametrize("purpose", Purpose)
def test_an_engine_in_order_opens_for_everything(engine, purpose):
    weights = ort_engines.tiny().weights_sha256
    wanted = Wanted(backend=backends.get("onnxruntime"), weights_sha256=weights)
    opened = open_engine(engine, purpose, wanted)
    assert opened.sidecar is not None
    assert opened.files == store.signature(engine.path)
    assert opened.session.inspect()["operations"]
    opened.session.close()


@pytest.mark.parametrize("purpose", RUNS)
def test_what_does_not_serve_is_neither_verified_nor_timed(engine, purpose):
    backend = backends.get("onnxruntime")
    with pytest.raises(StaleEngineError, match="built from other weights"):
        open_engine(engine, purpose, Wanted(backend=backend, weights_sha256="0" * 64))
    misplaced = EngineFile(engine.path, "encoder", "static", engine.resolution)
    with pytest.raises(StaleEngineError, match="the other half"):
        open_engine(misplaced, purpose, Wanted(backend=backend))
    assert check(misplaced, Purpose.INSPECT) is not None


def test_an_engine_of_unknown_origin_is_inspected_and_served_if_that_is_allowed(engine):
    store.sidecar_path(engine.path).unlink()
    for purpose in RUNS:
        with pytest.raises(ForeignEngineError):
            open_engine(engine, purpose)
    for purpose in (Purpose.VERIFY, Purpose.BENCH):
        with pytest.raises(ForeignEngineError):
            open_engine(engine, purpose, Wanted(allow_foreign=True))
    with pytest.warns(UserWarning, match="loaded because it was asked for"):
        open_engine(engine, Purpose.SERVE, Wanted(allow_foreign=True)).session.close()
    assert open_engine(engine, Purpose.INSPECT).sidecar is None


@pytest.mark.parametrize("purpose", Purpose)
def test_a_damaged_engine_opens_for_nothing(engine, purpose):
    engine.path.write_bytes(engine.path.read_bytes()[:-1])
    with pytest.raises(StaleEngineError, match="cut short"):
        open_engine(engine, purpose)
    engine.path.unlink()
    with pytest.raises(EngineError, match="no such file"):
        open_engine(engine, purpose)
