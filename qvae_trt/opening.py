"""From an engine file to a session that runs it: one way, whatever the engine is opened for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from qvae_trt import backends, store
from qvae_trt.errors import EngineError, ForeignEngineError
from qvae_trt.store import EngineFile, Sidecar

# How often an engine that is replaced while it is loaded is looked at again.
_LOOKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an engine that is opened has to be, beside what its place says.

    Attributes:
        backend: what is to run it; None: what its sidecar or its suffix says.
        weights_sha256, vae: of the VAE, and the name of its kind; None takes any.
        allow_foreign: take one without a sidecar, too. Deserialising an engine runs its code: use
            this only for engines that you built.
    """

    backend: backends.Backend | None = None
    weights_sha256: str | None = None
    vae: str | None = None
    allow_foreign: bool = False


ANY = Wanted()


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded engine.

    Attributes:
        files: the `store.signature` of what was loaded.
        sidecar: None for an engine of unknown origin.
    """

    path: Path
    files: tuple[object, ...]
    sidecar: Sidecar | None
    backend: backends.Backend
    session: backends.Session


def check(engine: EngineFile | Path, wanted: Wanted = ANY) -> Sidecar | None:
    """The sidecar of an engine that may be opened; None for one of unknown origin, if that is
    allowed. What serves, is verified and is timed is checked in this one way.

    Args:
        engine: with its place, which decides what it must be; a path alone takes any whole engine.

    Raises: as `store.check_engine`.
    """
    expected: dict[str, object] = {}
    if isinstance(engine, EngineFile):
        expected |= {} if wanted.backend is None else wanted.backend.identity()
        expected |= engine.place
        expected |= {"vae": wanted.vae, "weights_sha256": wanted.weights_sha256}
    try:
        return store.check_engine(_path(engine), expected=expected)
    except ForeignEngineError:
        if not wanted.allow_foreign:
            raise
        return None


def open_engine(
    engine: EngineFile | Path,
    wanted: Wanted = ANY,
    *,
    loading: Callable[[], AbstractContextManager[object]] = nullcontext,
    warn: bool = False,
) -> Opened:
    """Check an engine file, as `check` does, and load it.

    Args:
        loading: entered while it is loaded.
        warn: of an engine of unknown origin, before its code runs.

    Raises: as `check`, and as `Backend.open`.
    """
    path = _path(engine)
    for _ in range(_LOOKS):
        files = store.signature(path)  # it or its sidecar may be replaced while the other is read
        sidecar = check(engine, wanted)
        backend = wanted.backend or backends.for_engine(path, sidecar)
        if warn and sidecar is None:
            what = f"{path}: no sidecar says what it is; loaded because it was asked for"
            warnings.warn(what, stacklevel=2)
        with loading():
            session = backend.open(path)
            if store.signature(path) == files:
                return Opened(path, files, sidecar, backend, session)
            session.close()
    raise EngineError(
        f"{path}: replaced {_LOOKS} times while it was loaded", fix="wait until qvae build is done"
    )


def _path(engine: EngineFile | Path) -> Path:
    return engine.path if isinstance(engine, EngineFile) else engine
