"""Whether an engine file is what its sidecar says, and what is asked for."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from qvae_trt.commands import rebuild_command
from qvae_trt.errors import EngineError, ForeignEngineError, StaleEngineError
from qvae_trt.files.reading import open_regular, read_bytes, sha256_file, stamp_of
from qvae_trt.profiles import BACKENDS
from qvae_trt.store.sidecar import (
    ANY_GPU,
    KEY_FIELDS,
    MAX_SIDECAR_BYTES,
    EngineKey,
    Mismatch,
    Sidecar,
    next_sidecar_path,
    parse_sidecar,
    show,
    sidecar_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

_NOTHING: Mapping[str, object] = {}
# A replacement is two renames; a reader that meets one mid-way sees its end at the next look.
_LOOKS = 20


def read_sidecar(engine: Path) -> Sidecar:
    """The sidecar of an engine; the engine itself is not read, unless its replacement was cut
    short.

    Raises:
        ForeignEngineError: there is none.
        EngineError: malformed, from a newer format, or unreadable.
    """
    following = next_sidecar_if_valid(engine)
    return following if following is not None else _read(engine, sidecar_path(engine))


def check_engine(engine: Path, *, expected: Mapping[str, object] = _NOTHING) -> Sidecar:
    """The sidecar of an engine that is whole and is what is asked for.

    Args:
        expected: values by the names of EngineKey's fields. None stands for "any".

    Raises:
        ForeignEngineError: no sidecar.
        StaleEngineError: another size or hash than the sidecar's, or another key than expected;
            every difference is named, with the command that rebuilds.
        EngineError: missing, no regular file, unreadable, or its sidecar is.
    """
    for _ in range(_LOOKS):
        with _readable(engine):  # a missing engine is said before a missing sidecar
            open_regular(engine).close()
        before = _state(engine)
        sidecar = read_sidecar(engine)
        found = differences(sidecar.key, expected) or _differences_of_file(engine, sidecar)
        if not found:
            return sidecar
        if _state(engine) == before:
            break
    lines = "".join(f"\n  {mismatch}" for mismatch in found)
    fix = f"rebuild it: {_rebuild(engine, expected, sidecar, found)}"
    fields = {mismatch.field for mismatch in found}
    # All that differs between two backends; with more, no backend takes it.
    flavour = sidecar.key.flavour
    if flavour in BACKENDS and {"flavour"} <= fields <= {"flavour", "flavour_version"}:
        fix = f"backend={flavour!r} (--backend {flavour}) takes it; or {fix}"
    raise StaleEngineError(f"{engine}: not the engine asked for:{lines}", fix=fix)


def signature(engine: Path) -> tuple[object, ...]:
    """Changes when the engine or its sidecar does."""
    return stamp_of(engine), stamp_of(sidecar_path(engine))


def _state(engine: Path) -> tuple[object, ...]:
    return *signature(engine), stamp_of(next_sidecar_path(engine))


def _rebuild(
    engine: Path, expected: Mapping[str, object], sidecar: Sidecar, found: list[Mismatch]
) -> str:
    other = any(mismatch.field == "weights_sha256" for mismatch in found)
    model = None if other else option_in(words_of(sidecar.command), "--model")
    asked = {"backend": expected.get("flavour"), "precision": expected.get("precision")}
    command = rebuild_command(engine, model=model, **asked)
    return f"{command} --model MODEL (the one in use)" if other else command


def words_of(command: str) -> list[str]:
    """A sidecar's command line in words; none where no shell would have taken it."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def option_in(words: Sequence[str], option: str) -> str | None:
    """The value of an option in a command line; None without one."""
    split = [
        part for word in words for part in (word.split("=", 1) if word[:2] == "--" else [word])
    ]
    return next((value for name, value in pairwise(split) if name == option), None)


def differences(found: EngineKey, expected: Mapping[str, object]) -> list[Mismatch]:
    """What keeps an engine from being the one expected; None in `expected` fits anything.

    An engine built for `"any"` GPU fits every GPU, and one without compute capability every
    capability.
    """
    unknown = sorted(set(expected) - set(KEY_FIELDS))
    if unknown:
        raise ValueError(f"no fields of EngineKey: {', '.join(unknown)}")
    mismatches = []
    for name in KEY_FIELDS:
        want, have = expected.get(name), getattr(found, name)
        if want is None or want == have:
            continue
        if (name == "gpu" and have == ANY_GPU) or (name == "compute_capability" and have is None):
            continue
        mismatches.append(Mismatch(name, show(have), show(want)))
    return mismatches


def next_sidecar_if_valid(engine: Path) -> Sidecar | None:
    """The sidecar of a replacement that was cut short after the engine's rename, if it is this
    engine's.
    """
    path = next_sidecar_path(engine)
    if stamp_of(path) is None:
        return None
    try:
        sidecar = _read(engine, path)
        return None if _differences_of_file(engine, sidecar) else sidecar
    except EngineError:
        return None  # the caller reads the ordinary sidecar, and reports on that


def _differences_of_file(engine: Path, sidecar: Sidecar) -> list[Mismatch]:
    with _readable(engine):
        size = engine.stat().st_size
        if size != sidecar.engine_bytes:
            return [Mismatch("engine_bytes", f"{size} bytes", f"{sidecar.engine_bytes} bytes")]
        digest = sha256_file(engine)
    if digest != sidecar.engine_sha256:
        return [Mismatch("engine_sha256", show(digest), show(sidecar.engine_sha256))]
    return []


@contextmanager
def _readable(engine: Path) -> Iterator[None]:
    """EngineError for an engine file that cannot be read."""
    try:
        yield
    except FileNotFoundError as error:
        fix = f"build it: {rebuild_command(engine)}"
        raise EngineError(f"{engine}: no such file", fix=fix) from error
    except OSError as error:
        raise EngineError(f"{engine}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise EngineError(f"{str(engine)!r}: cannot be read: {error}") from error


def _read(engine: Path, path: Path) -> Sidecar:
    try:
        raw = read_bytes(path, most_bytes=MAX_SIDECAR_BYTES, fault=EngineError)
    except EngineError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ForeignEngineError(
            f"{engine}: no sidecar ({path.name}): nothing says who built this engine or for what",
            fix=f"build one here: {rebuild_command(engine)}",
        ) from error
    return parse_sidecar(raw, path=path)
