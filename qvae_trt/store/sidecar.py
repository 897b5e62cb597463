"""The sidecar: what an engine file is, as JSON beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping  # noqa: TC003  the type of a field
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from qvae_trt import json_rows
from qvae_trt.errors import EngineError, printable
from qvae_trt.files.json_file import is_sha256, parse_object
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import Mode, Part, Precision, Profile  # noqa: TC001  types of fields
from qvae_trt.tensors import DTYPES, TensorSpec
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.files.json_file import Table

FORMAT_VERSION = 1
MAX_SIDECAR_BYTES = 1 << 20
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

    def to_dict(self) -> dict[str, object]:
        """JSON-ready, in the order in which people read it."""
        row = json_rows.write(self)
        engine = {"sha256": row.pop("engine_sha256"), "bytes": row.pop("engine_bytes")}
        return {"format_version": row.pop("format_version"), "engine": engine, **row}

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

    def malformed(why: str) -> EngineError:
        return EngineError(
            f"{path}: malformed sidecar: {why}",
            fix="build the engine again; `qvae build` keeps the ones that are up to date",
        )

    top = parse_object(raw, most_bytes=MAX_SIDECAR_BYTES, fault=malformed)
    version = top.version()
    if version > FORMAT_VERSION:
        raise EngineError(
            f"{path}: sidecar of format {version}, expected at most {FORMAT_VERSION}:"
            " written by a newer qvae",
            fix="use that version of qvae, or build the engine again with this one",
        )
    engine = top.table("engine")
    # What is not read here is left alone: a later qvae may add to this format.
    return json_rows.read(
        Sidecar,
        top,
        format_version=version,
        key=_read_key(top.table("key")),
        input=_read_tensor(top.table("input")),
        output=_read_tensor(top.table("output")),
        engine_sha256=engine.sha256("sha256"),
        engine_bytes=engine.integer("bytes"),
    )


def _read_key(table: Table) -> EngineKey:
    given: dict[str, Any] = {} if "vae" in table.data else {"vae": QWEN_IMAGE.name}
    key = json_rows.read(EngineKey, table, **given)
    if not key.profiles:
        table.refuse("profiles", "empty")
    for profile in key.profiles:
        if not profile.holds(profile.opt):
            table.refuse("profiles", f"{profile}: expected min <= opt <= max")
    return key


def _read_tensor(table: Table) -> TensorSpec:
    shape = [side for side in table.list("shape") if type(side) is int and side >= -1]
    if len(shape) < len(table.list("shape")):
        table.refuse("shape", "no list of sides")
    return TensorSpec(
        table.text("name"), table.choice("dtype", tuple(DTYPES.values())), tuple(shape)
    )
