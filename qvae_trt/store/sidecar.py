"""The sidecar: what an engine file is, as JSON beside it; and whether the file still is that, and
what is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qvae_trt import json_rows
from qvae_trt.commands import option_in, rebuild_command
from qvae_trt.errors import EngineError, ForeignEngineError, StaleEngineError, printable
from qvae_trt.files.reading import open_regular, read_bytes, sha256_file, stamp_of
from qvae_trt.files.values import Value, is_sha256, parse_object
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import BACKENDS, Mode, Part, Precision, Profile
from qvae_trt.tensors import TensorSpec
from qvae_trt.version import __version__

FORMAT_VERSION = 1
ANY_GPU = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """All that decides whether an engine file can stand in for the one that would be built now.

    Attributes:
        flavour: the backend's name, as in `profiles.BACKENDS`; `flavour_version` its library's
            version.
        gpu: the GPU's name, `"cpu"`, or `"any"` for an engine that is not tied to one.
        compute_capability: `"9.0"`, or None where there is none or any will do.
        vae: the name of its kind; sidecars of before there were two have none.
        lowering: `lowerings.Lowering.canonical()`.
        profiles: the ranges in pixels, in the engine's order; a static engine has one, fixed.
        onnx_sha256, weights_sha256: of the graph that was compiled, and of the weights in it.
        recipe_sha256: of the source code that defines the graph.
    """

    flavour: str
    flavour_version: str
    gpu: str
    compute_capability: str | None
    vae: str = QWEN_IMAGE.name
    part: Part
    mode: Mode
    precision: Precision
    lowering: str
    profiles: tuple[Profile, ...]
    onnx_sha256: str
    weights_sha256: str
    recipe_sha256: str


KEY_FIELDS: tuple[str, ...] = tuple(f.name for f in fields(EngineKey))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What is known of one engine file.

    `write_engine` fills `engine_sha256`, `engine_bytes` and `created` (UTC, ISO 8601, for people:
    nothing compares it). `command` is the command line that made the engine.
    """

    key: EngineKey
    input: TensorSpec
    output: TensorSpec
    build_flags: Mapping[str, str] = field(default_factory=dict)
    build_seconds: float = 0.0
    command: str = ""
    created: str = ""
    engine_sha256: str = ""
    engine_bytes: int = 0
    qvae_version: str = __version__
    format_version: int = FORMAT_VERSION

    def other_level(self, level: int | None) -> str | None:
        """Why an engine of this level is another one; None where any level is right, or unknown."""
        built = self.build_flags.get("level")
        if level is None or built in (None, str(level)):
            return None
        return f"built with another level: found {built}, expected {level}"

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, in the order in which people read it."""
        row = json_rows.write(self)
        engine = {"sha256": row.pop("engine_sha256"), "bytes": row.pop("engine_bytes")}
        return {"format_version": row.pop("format_version"), "engine": engine, **row}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


#: What it means that a field is not the one asked for.
_ABOUT = {
    "flavour": "built by another backend",
    "flavour_version": "built by another version of its backend",
    "gpu": "built for another GPU",
    "compute_capability": "built for another compute capability",
    "vae": "built of another VAE",
    "part": "the other half of the VAE",
    "mode": "built in another mode",
    "precision": "built in another precision",
    "lowering": "built from another form of the graph",
    "profiles": "built for other sizes",
    "onnx_sha256": "built from another ONNX file",
    "weights_sha256": "built from other weights",
    "recipe_sha256": "built from a graph that this version of qvae makes differently",
    "engine_bytes": "cut short, or not the file that the sidecar describes",
    "engine_sha256": "changed since it was built, or not the file that the sidecar describes",
}


def sidecar_path(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def next_sidecar_path(engine: Path) -> Path:
    return engine.with_name(f".{engine.name}.next.json")


def show(value: object) -> str:
    """A key's value as people read it: hashes by their first 12 digits."""
    if isinstance(value, str):
        return value[:12] if is_sha256(value) else printable(value, lines=False)
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else str(value)


def parse_sidecar(raw: bytes, *, path: Path) -> Sidecar:
    """The sidecar in a file's bytes. EngineError, saying where and why, for anything else."""
    fix = "build the engine again; `qvae build` keeps the ones that are up to date"

    def malformed(why: str) -> EngineError:
        return EngineError(f"{path}: malformed sidecar: {why}", fix=fix)

    top = parse_object(raw, fault=malformed)
    top.check_version(FORMAT_VERSION)
    engine = top["engine"]
    # What is not read here is left alone: a later qvae may add to this format.
    return json_rows.read(
        Sidecar,
        top,
        key=_read_key(top["key"]),
        engine_sha256=engine["sha256"].sha256(),
        engine_bytes=engine["bytes"].integer(),
    )


def _read_key(table: Value) -> EngineKey:
    given: dict[str, Any] = {} if "vae" in table.fields() else {"vae": QWEN_IMAGE.name}
    key: EngineKey = json_rows.read(EngineKey, table, **given)
    if not key.profiles:
        table["profiles"].refuse("empty")
    for profile, item in zip(key.profiles, table["profiles"].items(), strict=True):
        if profile.fault is not None:
            item.refuse(profile.fault)
    return key


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
    return next_sidecar_if_valid(engine) or _read(engine, sidecar_path(engine))


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
        with _readable(engine):  # report a missing engine before a missing sidecar
            open_regular(engine).close()
        before = _state(engine)
        sidecar = read_sidecar(engine)
        found = differences(sidecar.key, expected) or _differences_of_file(engine, sidecar)
        if not found:
            return sidecar
        if _state(engine) == before:
            break
    lines = "".join(f"\n  {difference}" for difference in found.values())
    other_model = not found.keys().isdisjoint(("vae", "weights_sha256"))
    command = rebuild_command(
        engine,
        model="MODEL" if other_model else option_in(sidecar.command, "--model"),
        backend=expected.get("flavour"),
        precision=expected.get("precision"),
    )
    fix = f"rebuild it: {command}{' (MODEL: the one in use)' if other_model else ''}"
    # All that differs between two backends; with more, no backend takes it.
    flavour = sidecar.key.flavour
    if flavour in BACKENDS and {"flavour"} <= found.keys() <= {"flavour", "flavour_version"}:
        fix = f"backend={flavour!r} (--backend {flavour}) takes it; or {fix}"
    raise StaleEngineError(f"{engine}: not the engine asked for:{lines}", fix=fix)


def signature(engine: Path) -> tuple[object, ...]:
    """Changes when the engine or its sidecar does."""
    return stamp_of(engine), stamp_of(sidecar_path(engine))


def _state(engine: Path) -> tuple[object, ...]:
    return *signature(engine), stamp_of(next_sidecar_path(engine))


def differences(found: EngineKey, expected: Mapping[str, object]) -> dict[str, str]:
    """What keeps an engine from being the one expected, in words, by the names of fields; None in
    `expected` fits anything.

    An engine built for `"any"` GPU fits every GPU, and one without compute capability every
    capability.
    """
    unknown = sorted(set(expected) - set(KEY_FIELDS))
    if unknown:
        raise ValueError(f"no fields of EngineKey: {', '.join(unknown)}")
    different: dict[str, str] = {}
    for name in KEY_FIELDS:
        want, have = expected.get(name), getattr(found, name)
        if want is None or want == have:
            continue
        if (name == "gpu" and have == ANY_GPU) or (name == "compute_capability" and have is None):
            continue
        different |= _difference(name, show(have), show(want))
    return different


def _difference(name: str, found: str, expected: str) -> dict[str, str]:
    return {name: f"{_ABOUT[name]}: found {found}, expected {expected}"}


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


def _differences_of_file(engine: Path, sidecar: Sidecar) -> dict[str, str]:
    with _readable(engine):
        size = engine.stat().st_size
        if size != sidecar.engine_bytes:
            return _difference("engine_bytes", f"{size} bytes", f"{sidecar.engine_bytes} bytes")
        digest = sha256_file(engine)
    if digest != sidecar.engine_sha256:
        return _difference("engine_sha256", show(digest), show(sidecar.engine_sha256))
    return {}


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
        raw = read_bytes(path, fault=EngineError)
    except EngineError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ForeignEngineError(
            f"{engine}: no sidecar ({path.name}): nothing says who built this engine or for what",
            fix=f"build one here: {rebuild_command(engine)}",
        ) from error
    return parse_sidecar(raw, path=path)
