"""From an engine file to a session that runs it: one way, whatever the engine is opened for."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from qvae_trt import backends, store
from qvae_trt.errors import EngineError, ForeignEngineError
from qvae_trt.store import EngineFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from qvae_trt.backends import Backend, Session
    from qvae_trt.store import Sidecar

# How often an engine that is replaced while it is loaded is looked at again.
_LOOKS = 5


class Purpose(Enum):
    """What an engine is opened for. To serve, to verify and to bench take the same engines: those
    that were built for this place, backend, machine and weights. To inspect takes any.
    """

    SERVE = auto()
    VERIFY = auto()
    BENCH = auto()
    INSPECT = auto()


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
    backend: Backend
    session: Session


def check(
    engine: EngineFile | Path,
    purpose: Purpose,
    *,
    backend: Backend | None = None,
    weights_sha256: str | None = None,
    vae: str | None = None,
    allow_foreign: bool = False,
) -> Sidecar | None:
    """The sidecar of an engine that may be opened; None for one of unknown origin, which may be
    inspected, and served if that is allowed.

    Args:
        engine: with its place, which decides what it must be; a path alone takes any whole engine.
        backend: what is to run it; without one, any.
        weights_sha256, vae: of the VAE, and the name of its kind; without them, of any.

    Raises: as `store.check_engine`.
    """
    expected: dict[str, object] = {}
    path = engine.path if isinstance(engine, EngineFile) else engine
    if isinstance(engine, EngineFile) and purpose is not Purpose.INSPECT:
        identity = {} if backend is None else backend.identity()
        expected = engine.expected(identity, weights_sha256=weights_sha256, vae=vae)
    try:
        return store.check_engine(path, expected=expected)
    except ForeignEngineError:
        if purpose is Purpose.INSPECT or (purpose is Purpose.SERVE and allow_foreign):
            return None
        raise


def open_engine(
    engine: EngineFile | Path,
    purpose: Purpose,
    *,
    backend: Backend | None = None,
    weights_sha256: str | None = None,
    vae: str | None = None,
    allow_foreign: bool = False,
    loading: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Opened:
    """Check an engine file, as `check` does, and load it. Deserialising runs code of its maker.

    Args:
        backend: without one, what the sidecar or the file's suffix says.
        loading: entered while it is loaded.

    Raises: as `check`, and as `Backend.open`.
    """
    path = engine.path if isinstance(engine, EngineFile) else engine
    for _ in range(_LOOKS):
        files = store.signature(path)  # it or its sidecar may be replaced while the other is read
        sidecar = check(
            engine,
            purpose,
            backend=backend,
            weights_sha256=weights_sha256,
            vae=vae,
            allow_foreign=allow_foreign,
        )
        if sidecar is None and purpose is Purpose.SERVE:
            what = f"{path}: no sidecar says what it is; loaded because it was asked for"
            warnings.warn(what, stacklevel=3)
        runs_it = backend or backends.for_engine(path, sidecar)
        with loading():
            session = runs_it.open(path)
            if store.signature(path) == files:
                return Opened(path, files, sidecar, runs_it, session)
            session.close()
    raise EngineError(
        f"{path}: replaced {_LOOKS} times while it was loaded", fix="wait until qvae build is done"
    )
