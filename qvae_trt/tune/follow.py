"""Which tune file `build` follows, and why it does not follow one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qvae_trt import store
from qvae_trt.backends import Backend
from qvae_trt.errors import BenchError, QvaeError
from qvae_trt.lowerings import Lowering
from qvae_trt.profiles import Part, Precision
from qvae_trt.tune import record
from qvae_trt.tune.record import TuneFile, TuneKey

FILE_NAME = "tune.json"
NONE = "none"
#: Fields of a key that say which builds a file is about.
_OF_THE_BUILD = ("flavour", "flavour_version", "precision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What a build takes from a tune file.

    Attributes:
        path: the file that was looked at; None where there is none.
        lines: for people: each part's variant, or why the file is not followed.
        lowerings, levels: for `build`; empty where no file is followed.
    """

    path: Path | None = None
    lines: tuple[str, ...] = ()
    lowerings: Mapping[Part, Lowering] = field(default_factory=dict)
    levels: Mapping[Part, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        path = None if self.path is None else str(self.path)
        return {"file": path, "used": bool(self.lowerings), "notes": list(self.lines)}


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
        file = record.load(path)
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
    variants = {part: file.choices[part].variant for part in parts if part in file.choices}
    return Followed(
        path=path,
        lines=tuple(_line(path, file, part) for part in parts),
        lowerings={part: variant.lowering for part, variant in variants.items()},
        levels={part: v.level for part, v in variants.items() if v.level is not None},
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
        level, built = choice.variant.level, sidecar.build_flags.get("level")
        other_level = level is not None and built is not None and built != str(level)
        if other_level or key.lowering != choice.variant.lowering.canonical():
            found.append(engine.path)
    return found


def _line(path: Path, file: TuneFile, part: Part) -> str:
    choice, measurement = file.choices.get(part), file.chosen(part)
    if choice is None or measurement is None or measurement.timing is None:
        return f"{path}: the {part} was not tuned"
    words = f"{path}: {part} {choice.variant}: {measurement.timing.median_ms:.2f} ms"
    if choice.default_ms is not None:
        words += f", default {choice.default_ms:.2f} ms"
    unfinished = "" if choice.complete else " (qvae tune was not finished)"
    return f"{words}, at {choice.subject.resolution}{unfinished}"
