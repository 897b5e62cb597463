"""What is to be built: jobs, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from qvae_trt import json_rows
from qvae_trt.errors import QvaeError, UsageError
from qvae_trt.profiles import PARTS, Mode, Part, Profile, Resolution, engine_path
from qvae_trt.store import EngineFile
from qvae_trt.tensors import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from qvae_trt.model import Model

Status = Literal["built", "kept", "failed", "planned"]


@dataclass(frozen=True, slots=True)
class Job(EngineFile):
    """One engine to have: `profiles` in pixels, a single fixed one for a static engine."""

    profiles: tuple[Profile, ...] = ()

    @property
    def title(self) -> str:
        """`decoder 1664x928`, `encoder, 9 profiles`."""
        if self.mode == "static":
            return f"{self.part} {self.resolution}"
        count = len(self.profiles)
        return f"{self.part}, {count} profile{'' if count == 1 else 's'}"

    def ranges(self, model: Model) -> tuple[ShapeRange, ...]:
        """The shapes of the input."""
        shapes = [
            [model.shape(self.part, size) for size in (p.min, p.opt, p.max)] for p in self.profiles
        ]
        return tuple(ShapeRange(*ends) for ends in shapes)


@dataclass(frozen=True, slots=True)
class JobResult:
    """What became of a job.

    Attributes:
        status: `planned` is what a dry run says of an engine that would be built.
        reason: why it was built (or kept, or would be built), or what failed.
        seconds: export and build; for `planned`, what the engine that is there took, None if
            unknown.
        engine_bytes: of the engine file; for `planned`, of the one that is there, None if unknown.
        warnings: to show although the job succeeded.
        error: of a failed job.
    """

    job: Job
    status: Status
    reason: str
    seconds: float | None = None
    engine_bytes: int | None = None
    warnings: tuple[str, ...] = ()
    error: QvaeError | None = None

    @property
    def outcome(self) -> str:
        """In words, as an event tells it; nothing of a dry run, whose table says it all."""
        built = f"built in {self.seconds or 0:.1f} s"
        words = {"failed": f"failed: {self.reason}", "built": built, "kept": "kept"}
        return words.get(self.status, "")

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "engine": str(self.job.path),
            "title": self.job.title,
            "part": self.job.part,
            "mode": self.job.mode,
            "profiles": json_rows.write(self.job.profiles),
            "status": self.status,
            "reason": self.reason,
            "seconds": self.seconds,
            "bytes": self.engine_bytes,
            "warnings": list(self.warnings),
            "fix": self.error.fix if self.error is not None else None,
        }


def plan_static(
    engine_dir: Path,
    sizes: Iterable[Resolution],
    parts: Sequence[Part] = PARTS,
    suffix: str = ".trt",
) -> list[Job]:
    """A job for each size and part; a size given twice counts once. UsageError if there is none."""
    ranges = [(Profile.fixed(size),) for size in dict.fromkeys(sizes)]
    return _plan(engine_dir, "static", ranges, parts, suffix)


def plan_profiles(
    engine_dir: Path,
    profiles: Sequence[Profile],
    parts: Sequence[Part] = PARTS,
    suffix: str = ".trt",
) -> list[Job]:
    """One job a part, each with all profiles. UsageError if there is none."""
    return _plan(engine_dir, "profiles", [tuple(profiles)] if profiles else [], parts, suffix)


def _plan(
    engine_dir: Path,
    mode: Mode,
    engines: Sequence[tuple[Profile, ...]],
    parts: Sequence[Part],
    suffix: str,
) -> list[Job]:
    jobs = []
    for profiles in engines:
        size = profiles[0].opt if mode == "static" else None
        for part in dict.fromkeys(parts):
            path = engine_path(engine_dir, part, mode, suffix, size)
            jobs.append(Job(path, part, mode, size, profiles))
    if not jobs:
        raise UsageError("nothing to build: no size, profile or part given")
    return jobs
