"""About how long a build takes and how large it gets, from engines that were measured.

`data/builds.json` is written from the sidecars under benchmarks/. It knows no other GPU than
those measured there, so whoever shows an estimate names its machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from qvae_trt.build import Job


@dataclass(frozen=True, slots=True)
class Measured:
    """An engine of the full VAE that was built once. `size` is None for one with profiles."""

    flavour: str
    flavour_version: str
    gpu: str
    part: str
    mode: str
    size: str | None
    seconds: float
    bytes: int

    @property
    def place(self) -> str:
        return f"{self.gpu} with {self.flavour} {self.flavour_version}"


def measured_like(job: Job, flavour: str) -> Measured | None:
    """Of the same flavour, part and mode the one of the nearest size, if there is any."""
    wanted = (flavour, job.part, job.mode)
    alike = [row for row in _measured() if (row.flavour, row.part, row.mode) == wanted]

    def distance(row: Measured) -> int:
        if row.size is None or job.resolution is None:
            return 0
        return abs(Resolution.parse(row.size).pixels - job.resolution.pixels)

    return min(alike, key=distance, default=None)


@lru_cache(maxsize=1)
def _measured() -> tuple[Measured, ...]:
    text = files("qvae_trt").joinpath("data/builds.json").read_text("utf-8")
    return tuple(Measured(**row) for row in json.loads(text)["engines"])
