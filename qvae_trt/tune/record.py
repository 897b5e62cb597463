"""The tune file: what was measured on a machine, and what `build` follows of it.

JSON, read strictly: what is missing, unknown, of another type or out of range is refused.

    format_version   1
    qvae_version     text: who wrote it
    command          text: the command line that wrote it last
    key              what it holds for; `build` follows it only where all five are the same
      flavour, flavour_version, gpu    texts; gpu is "cpu" where there is none
      compute_capability               text or null
      precision                        "fp16", "bf16" or "fp32"
    choice           an object with "encoder", "decoder", both or neither
      lowering       text, as `Lowering.canonical()`
      level          0 to 5, or null for what `build` takes by default
      resolution     "WxH", where it was measured
      weights_sha256, recipe_sha256    of what it was measured with
      default_ms     number or null: what the default variant took
      complete       true once all planned variants were tried
    measurements     a list, in the order in which they were taken
      part           "encoder" or "decoder"
      resolution     "WxH"
      lowering, level                  as above
      model          text, for people
      weights_sha256, recipe_sha256    hexadecimal: of the weights, and of the source of the graph
      status         "ok"; "broken": differs from the fp32 network by more than a bound;
                     "failed": could not be built or run
      reason         text; empty where ok
      timing         null where failed, else median_ms, p10_ms, p90_ms, min_ms (> 0), runs (>= 1),
                     wall_ms (number or null)
      parity         null where failed, else psnr_db and relative_l2: the worst output's, each
                     number or null where not finite
      build_seconds, engine_bytes, memory_bytes    numbers or null; memory_bytes is what one run
                     takes on the GPU beside the weights

A choice must be among the measurements, with status "ok".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from qvae_trt import store
from qvae_trt.backends import Backend
from qvae_trt.bench.results import Timing
from qvae_trt.errors import BenchError, QvaeError
from qvae_trt.files.reading import read_bytes
from qvae_trt.files.values import AnyNumber, Sha256, parse_object
from qvae_trt.files.writing import write_text
from qvae_trt.json_rows import FLAT, read, write
from qvae_trt.profiles import PARTS, Part, Precision, Resolution
from qvae_trt.tune.variants import Variant
from qvae_trt.version import __version__

FILE_NAME = "tune.json"
NONE = "none"
#: Fields of a key that say which builds a file is about.
_OF_THE_BUILD = ("flavour", "flavour_version", "precision")
FORMAT_VERSION = 1
Status = Literal["ok", "broken", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneKey:
    """What a measurement holds for."""

    flavour: str
    flavour_version: str
    gpu: str
    compute_capability: str | None
    precision: Precision

    @classmethod
    def here(cls, backend: Backend, precision: Precision) -> TuneKey:
        """The key of this backend on this machine. `gpu` is the real one, also for TensorRT-RTX:
        its engines fit any GPU, a measured time does not.
        """
        device = backend.device()
        return cls(
            flavour=backend.name,
            flavour_version=backend.version(),
            gpu="none" if device is None else device.name,
            compute_capability=None if device is None else device.compute_capability,
            precision=precision,
        )

    def differences(self, expected: TuneKey) -> str:
        """`found …, expected …` for each field that differs; empty if none does."""
        return "; ".join(
            f"{name.replace('_', ' ')} {store.show(value)}, expected {getattr(expected, name)}"
            for name, value in asdict(self).items()
            if value != getattr(expected, name)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is measured, except for the variant. Two measurements with equal subject and variant are
    of the same thing.
    """

    part: Part
    resolution: Resolution
    weights_sha256: Sha256
    recipe_sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The worst output's distance from the fp32 network."""

    psnr_db: AnyNumber | None
    relative_l2: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One variant: built, compared with the fp32 network, timed."""

    subject: Annotated[Subject, FLAT]
    variant: Annotated[Variant, FLAT]
    model: str
    status: Status
    reason: str = ""
    timing: Timing | None = None
    parity: Parity | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None
    memory_bytes: int | None = None

    @property
    def outcome(self) -> str:
        """In words: the status, the median, what is wrong."""
        took = "" if self.timing is None else f" {self.timing.median_ms:.2f} ms"
        return f"{self.status}{took}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedVariant:
    """The variant to build a part with, and what it was chosen from."""

    subject: Annotated[Subject, FLAT]
    variant: Annotated[Variant, FLAT]
    default_ms: float | None
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneFile:
    """A tune file's content."""

    key: TuneKey
    measurements: tuple[Measurement, ...] = ()
    choices: Mapping[Part, TunedVariant] = field(default_factory=dict)
    command: str = ""
    qvae_version: str = __version__

    def find(self, subject: Subject, variant: Variant) -> Measurement | None:
        return next(
            (m for m in self.measurements if (m.subject, m.variant) == (subject, variant)), None
        )

    def chosen(self, part: Part) -> Measurement | None:
        """The measurement of the chosen variant."""
        choice = self.choices.get(part)
        return None if choice is None else self.find(choice.subject, choice.variant)

    def to_dict(self) -> dict[str, object]:
        return {
            "format_version": FORMAT_VERSION,
            "qvae_version": self.qvae_version,
            "command": self.command,
            "key": write(self.key),
            "choice": {part: _without_part(choice) for part, choice in self.choices.items()},
            "measurements": write(self.measurements),
        }


def save(file: TuneFile, path: Path) -> None:
    """Write it, whole or not at all. Raises StoreError."""
    text = json.dumps(file.to_dict(), indent=2, ensure_ascii=True, allow_nan=False)
    write_text(path, text + "\n")


def load(path: Path) -> TuneFile:
    """Read a tune file.

    Raises:
        BenchError: it is missing, cannot be read, is malformed or of another qvae.
    """
    unread = partial(BenchError, fix="qvae tune --resolution WxH writes it")
    return parse(read_bytes(path, fault=unread), path=path)


def parse(raw: bytes, *, path: Path) -> TuneFile:
    """The tune file in these bytes. BenchError, saying where and why, for anything else."""
    fix = "if qvae tune wrote it, remove it and run qvae tune again; else name another file"
    place = f"{path}: malformed tune file"
    top = parse_object(raw, fault=lambda why: BenchError(f"{place}: {why}", fix=fix))
    top.check_version(FORMAT_VERSION)
    top.only("format_version", "qvae_version", "command", "key", "choice", "measurements")
    top["choice"].only(*PARTS)
    file = TuneFile(
        qvae_version=top["qvae_version"].text(),
        command=top["command"].text(),
        key=read(TuneKey, top["key"], strict=True),
        measurements=read(tuple[Measurement, ...], top["measurements"], strict=True),
        choices={
            part: read(TunedVariant, top["choice"][part], strict=True, part=part)
            for part in PARTS
            if part in top["choice"].data
        },
    )
    for item, row in zip(top["measurements"].items(), file.measurements, strict=True):
        if (row.timing is not None and row.parity is not None) is (row.status == "failed"):
            item["status"].refuse(f"{row.status} does not fit timing and parity")
    if len({(m.subject, m.variant) for m in file.measurements}) < len(file.measurements):
        top["measurements"].refuse("one variant twice")
    for part in file.choices:
        measurement = file.chosen(part)
        if measurement is None or measurement.status != "ok":
            top["choice"][part].refuse("not among the measurements that are ok")
    return file


def _without_part(choice: TunedVariant) -> dict[str, Any]:
    """The choice without its part, which is its name in the file."""
    return {name: value for name, value in write(choice).items() if name != "part"}


# --- what a build takes from it -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What a build takes from a tune file.

    Attributes:
        path: the file that was looked at; None where there is none.
        lines: for people: each part's variant, or why the file is not followed.
        variants: for `build`; empty where no file is followed.
    """

    path: Path | None = None
    lines: tuple[str, ...] = ()
    variants: Mapping[Part, Variant] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        path = None if self.path is None else str(self.path)
        return {"file": path, "used": bool(self.variants), "notes": list(self.lines)}


def follow(
    asked: str | None,
    *,
    engine_dir: Path,
    backend: Backend,
    precision: Precision,
    parts: Sequence[Part],
) -> Followed:
    """What `build` is to take from a tune file.

    Args:
        asked: a file, `none`, or None for `tune.json` in `engine_dir` if it is there.
        engine_dir, backend, precision, parts: of the build.

    Raises:
        BenchError: a file that was asked for is missing, malformed or measured for something else.
            The one in `engine_dir` is then left alone, with the reason in `lines`.
    """
    if asked == NONE:
        return Followed()
    path = engine_dir / FILE_NAME if asked is None else Path(asked)
    if asked is None and not path.exists():
        return Followed()
    try:
        file = load(path)
        other = file.key.differences(TuneKey.here(backend, precision))
        if other:
            raise BenchError(
                f"{path}: tuned for something else: {other}",
                fix="qvae tune on this machine, or --tune none",
            )
    except BenchError as error:
        if asked is not None:
            raise
        return Followed(path=path, lines=(f"warning: not followed: {error.what}",))
    return Followed(
        path=path,
        lines=tuple(_followed_line(path, file, part) for part in parts),
        variants={part: file.choices[part].variant for part in parts if part in file.choices},
    )


def built_otherwise(file: TuneFile, engine_dir: Path) -> list[Path]:
    """The engines that `build`, following this file, builds again: of the file's backend, version
    and precision, and of another variant.
    """
    holds_for = {name: getattr(file.key, name) for name in _OF_THE_BUILD}
    found = []
    for engine in store.find_engines(engine_dir):
        try:
            sidecar = store.read_sidecar(engine.path)
        except QvaeError:
            continue  # stale whatever was tuned
        key, choice = sidecar.key, file.choices.get(engine.part)
        if choice is None or store.differences(key, holds_for):
            continue
        variant = choice.variant
        fit = variant.lowering.for_sizes(key.profiles, key.flavour, key.flavour_version)
        if sidecar.other_level(variant.level) or key.lowering != fit.canonical():
            found.append(engine.path)
    return found


def _followed_line(path: Path, file: TuneFile, part: Part) -> str:
    choice, measurement = file.choices.get(part), file.chosen(part)
    if choice is None or measurement is None or measurement.timing is None:
        return f"{path}: the {part} was not tuned"
    words = f"{path}: {part} {choice.variant}: {measurement.timing.median_ms:.2f} ms"
    if choice.default_ms is not None:
        words += f", default {choice.default_ms:.2f} ms"
    unfinished = "" if choice.complete else " (qvae tune was not finished)"
    return f"{words}, at {choice.subject.resolution}{unfinished}"
