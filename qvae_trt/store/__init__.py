"""Engine files on disk: what they are (sidecars), whether they still are (hashes), and how they are
written.

Files of an engine `vae_encoder.trt`, all in its folder:

    vae_encoder.trt                the engine
    vae_encoder.trt.json           its sidecar
    .vae_encoder.trt.next.json     the sidecar of the engine that is about to take the place
    .vae_encoder.trt.*.tmp         files being written, private (mode 0600)
    .vae_encoder.trt.lock          held while the engine is built or written

An engine and its sidecar cannot be replaced in one step. They are replaced so that a kill at any
moment, or a power cut, leaves a whole engine that has its sidecar:

    1. the new engine is written to a temporary file and synced
    2. its sidecar is written as `.next.json`, synced     killed before 3: the old pair is untouched
    3. the new engine is renamed over the old one         killed before 4: new engine, old sidecar,
                                                          `.next.json`
    4. `.next.json` is renamed over the old sidecar

Sidecars carry the engine's SHA-256, so a reader that finds state 3 sees that the old sidecar is not
this engine's, tries `.next.json`, and takes it if the hash is right. Whoever next takes the lock
finishes step 4 (or removes a `.next.json` that belongs to no engine) and removes temporary files.
No step looks at the clock.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qvae_trt.errors import EngineError, ResolutionError, UsageError
from qvae_trt.profiles import BACKENDS, PARTS, Mode, Part, Profile, Resolution, engine_path
from qvae_trt.store.sidecar import EngineKey as EngineKey
from qvae_trt.store.sidecar import Sidecar as Sidecar
from qvae_trt.store.sidecar import check_engine as check_engine
from qvae_trt.store.sidecar import differences as differences
from qvae_trt.store.sidecar import read_sidecar as read_sidecar
from qvae_trt.store.sidecar import show as show
from qvae_trt.store.sidecar import sidecar_path as sidecar_path
from qvae_trt.store.sidecar import signature as signature
from qvae_trt.store.writing import clean_up as clean_up
from qvae_trt.store.writing import lock_engine as lock_engine
from qvae_trt.store.writing import write_engine as write_engine

_SUFFIXES = tuple(dict.fromkeys(BACKENDS.values()))


@dataclass(frozen=True, slots=True)
class EngineFile:
    """An engine's place. `resolution` is that of a static engine."""

    path: Path
    part: Part
    mode: Mode
    resolution: Resolution | None = None

    @property
    def is_there(self) -> bool:
        """True also for a folder or a broken link: opening it reports that."""
        return os.path.lexists(self.path)

    @property
    def place(self) -> dict[str, object]:
        """The fields of `EngineKey` that its place in the folder decides."""
        fields: dict[str, object] = {"part": self.part, "mode": self.mode}
        if self.resolution is not None:
            fields["profiles"] = (Profile.fixed(self.resolution),)
        return fields


def engine_file(
    engine_dir: Path, part: Part, mode: Mode, suffix: str, resolution: Resolution | None = None
) -> EngineFile:
    """The engine of a part, and of a size if static, there or not; `suffix`: its backend's."""
    path = engine_path(engine_dir, part, mode, suffix, resolution)
    return EngineFile(path, part, mode, resolution)


def find_engines(engine_dir: Path) -> list[EngineFile]:
    """Every engine under the folder: static ones by size, small first, then those with profiles."""
    sizes: set[Resolution] = set()
    folder = engine_dir / "static"
    for entry in folder.iterdir() if folder.is_dir() else ():
        with suppress(ResolutionError):  # a folder of something else
            sizes.add(Resolution.parse(entry.name))
    places: list[tuple[Mode, Resolution | None]] = [
        ("static", size) for size in sorted(sizes, key=lambda size: (size.pixels, size))
    ]
    places.append(("profiles", None))
    return [
        file
        for mode, size in places
        for part in PARTS
        for suffix in _SUFFIXES
        if (file := engine_file(engine_dir, part, mode, suffix, size)).is_there
    ]


def check_other_folder(engine_dir: Path, out: Path, *, use: str, name: str, build: str) -> None:
    """Whether the engines of `engine_dir` can be put into `out`.

    Args:
        use: what `out` is for.
        name: of a folder that could be `out`.
        build: the command that makes the engine folder.

    Raises:
        EngineError: there is no engine folder.
        UsageError: `out` is the engine folder.
    """
    if not engine_dir.is_dir():
        raise EngineError(f"{engine_dir}: no such folder", fix=build)
    if out.exists() and out.samefile(engine_dir):
        raise UsageError(
            f"{out} is the engine folder: expected another one for {use}",
            fix=f"for example --out {engine_dir.with_name(name)}",
        )
