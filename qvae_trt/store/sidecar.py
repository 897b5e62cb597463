"""The sidecar: what an engine file is, as JSON beside it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

import qvae_trt
from qvae_trt.backends import DTypeName, TensorSpec
from qvae_trt.errors import EngineError, ResolutionError
from qvae_trt.profiles import (
    MODES,
    PARTS,
    PRECISIONS,
    Mode,
    Part,
    Precision,
    Profile,
    Resolution,
)

if TYPE_CHECKING:
    from pathlib import Path

FORMAT_VERSION = 1
MAX_SIDECAR_BYTES = 1 << 20
ANY_GPU = "any"
_DTYPES: tuple[DTypeName, ...] = ("float16", "bfloat16", "float32")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """All that decides whether an engine file can stand in for the one that would be built now.

    Attributes:
        flavour: the backend's name, as in `backends.NAMES`; `flavour_version` its library's
            version.
        gpu: the GPU's name, `"cpu"`, or `"any"` for an engine that is not tied to one.
        compute_capability: `"9.0"`, or None where there is none or any will do.
        lowering: `folding.Lowering.canonical()`.
        profiles: the ranges in pixels, in the engine's order; a static engine has one, fixed.
        onnx_sha256, weights_sha256: of the graph that was compiled, and of the weights in it.
        recipe_sha256: of the source code that defines the graph.
    """

    flavour: str
    flavour_version: str
    gpu: str
    compute_capability: str | None
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
    build_flags: dict[str, str] = field(default_factory=dict)
    command: str = ""
    build_seconds: float = 0.0
    created: str = ""
    engine_sha256: str = ""
    engine_bytes: int = 0
    qvae_version: str = qvae_trt.__version__
    format_version: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, in the order in which people read it."""
        return {
            "format_version": self.format_version,
            "engine": {"sha256": self.engine_sha256, "bytes": self.engine_bytes},
            "key": {name: _plain(getattr(self.key, name)) for name in KEY_FIELDS},
            "input": _plain_tensor(self.input),
            "output": _plain_tensor(self.output),
            "build_flags": dict(self.build_flags),
            "build_seconds": self.build_seconds,
            "command": self.command,
            "created": self.created,
            "qvae_version": self.qvae_version,
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing in which an engine is not what is asked for."""

    field: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{_ABOUT.get(self.field, self.field)}: found {self.found}, expected {self.expected}"


_ABOUT = {
    "flavour": "built by another backend",
    "flavour_version": "built by another version of its backend",
    "gpu": "built for another GPU",
    "compute_capability": "built for another compute capability",
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
        return value[:12] if _is_sha256(value) else value
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value)
    return "none" if value is None else str(value)


def parse_sidecar(raw: bytes, *, path: Path) -> Sidecar:
    """The sidecar in a file's bytes. EngineError, saying where and why, for anything else."""
    if len(raw) > MAX_SIDECAR_BYTES:
        raise _malformed(path, f"{len(raw)} bytes, expected at most {MAX_SIDECAR_BYTES}")
    try:
        data: object = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _malformed(path, "nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and ints too long to read
        raise _malformed(path, str(error)) from error
    reader = _Reader(path, "", data)
    version = reader.integer("format_version")
    if version > FORMAT_VERSION:
        raise EngineError(
            f"{path}: sidecar of format {version}, expected at most {FORMAT_VERSION}:"
            " written by a newer qvae",
            fix="use that version of qvae, or build the engine again with this one",
        )
    if version < 1:
        raise _malformed(path, f"format_version is {version}, expected {FORMAT_VERSION}")
    engine = reader.table("engine")
    sha256 = engine.text("sha256")
    if not _is_sha256(sha256):
        raise _malformed(path, "engine.sha256 is no SHA-256 in hexadecimal")
    return Sidecar(
        format_version=version,
        key=_read_key(reader.table("key")),
        input=_read_tensor(reader.table("input")),
        output=_read_tensor(reader.table("output")),
        build_flags=reader.table("build_flags").texts(),
        build_seconds=reader.seconds("build_seconds"),
        command=reader.text("command"),
        created=reader.text("created"),
        qvae_version=reader.text("qvae_version"),
        engine_sha256=sha256,
        engine_bytes=engine.integer("bytes"),
    )


def _read_key(table: _Reader) -> EngineKey:
    capability = table.value("compute_capability")
    key = EngineKey(
        flavour=table.text("flavour"),
        flavour_version=table.text("flavour_version"),
        gpu=table.text("gpu"),
        compute_capability=None if capability is None else table.text("compute_capability"),
        part=table.choice("part", PARTS),
        mode=table.choice("mode", MODES),
        precision=table.choice("precision", PRECISIONS),
        lowering=table.text("lowering"),
        profiles=tuple(_read_profile(item) for item in table.tables("profiles")),
        onnx_sha256=table.text("onnx_sha256"),
        weights_sha256=table.text("weights_sha256"),
        recipe_sha256=table.text("recipe_sha256"),
    )
    if not key.profiles:
        raise _malformed(table.path, "key.profiles is empty")
    return key


def _read_profile(table: _Reader) -> Profile:
    try:
        low, opt, high = (Resolution.parse(table.text(name)) for name in ("min", "opt", "max"))
    except ResolutionError as error:
        raise _malformed(table.path, f"{table.where}{error.what}") from error
    profile = Profile(low, opt, high)
    if not profile.holds(opt):
        raise _malformed(table.path, f"{table.where}expected min <= opt <= max")
    return profile


def _read_tensor(table: _Reader) -> TensorSpec:
    shape = table.value("shape")
    if not isinstance(shape, list) or not all(type(n) is int and n >= -1 for n in shape):
        raise _malformed(table.path, f"{table.where}shape is no list of sides")
    return TensorSpec(table.text("name"), table.choice("dtype", _DTYPES), tuple(shape))


class _Reader:
    """Typed access to a JSON object; what is missing or of another type is an EngineError."""

    def __init__(self, path: Path, where: str, data: object) -> None:
        self.path = path
        self.where = where
        if not isinstance(data, dict):
            raise _malformed(path, f"{where or 'it '}is no JSON object")
        self.data: dict[str, object] = data

    def value(self, name: str) -> object:
        if name not in self.data:
            raise _malformed(self.path, f"{self.where}{name} is missing")
        return self.data[name]

    def _typed(self, name: str, kind: type[_T], expected: str) -> _T:
        value = self.value(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _malformed(self.path, f"{self.where}{name} is no {expected}")
        return value

    def text(self, name: str) -> str:
        text = self._typed(name, str, "text")
        # Half a surrogate pair is legal in JSON and cannot be printed.
        if not _printable(text):
            raise _malformed(self.path, f"{self.where}{name} is no valid Unicode")
        return text

    def integer(self, name: str) -> int:
        return self._typed(name, int, "integer")

    def seconds(self, name: str) -> float:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _malformed(self.path, f"{self.where}{name} is no number")
        try:
            seconds = float(value)
        except OverflowError:
            seconds = math.inf
        if not 0 <= seconds < math.inf:
            raise _malformed(self.path, f"{self.where}{name} is no duration")
        return seconds

    def choice(self, name: str, known: tuple[_T, ...]) -> _T:
        value = self.value(name)
        for one in known:
            if isinstance(value, str) and value == one:
                return one
        raise _malformed(self.path, f"{self.where}{name} is none of {', '.join(map(str, known))}")

    def table(self, name: str) -> _Reader:
        return _Reader(self.path, f"{self.where}{name}.", self.value(name))

    def tables(self, name: str) -> list[_Reader]:
        items = self._typed(name, list, "list")
        return [
            _Reader(self.path, f"{self.where}{name}[{index}].", item)
            for index, item in enumerate(items)
        ]

    def texts(self) -> dict[str, str]:
        if not all(map(_printable, self.data)):
            raise _malformed(self.path, f"{self.where}a name is no valid Unicode")
        return {name: self.text(name) for name in self.data}


def _malformed(path: Path, why: str) -> EngineError:
    return EngineError(
        f"{path}: malformed sidecar: {why}",
        fix="build the engine again; `qvae build` keeps the ones that are up to date",
    )


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _printable(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [{name: str(getattr(p, name)) for name in ("min", "opt", "max")} for p in value]
    return value


def _plain_tensor(tensor: TensorSpec) -> dict[str, object]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
