"""About how long a build takes and how large it gets, from engines that were measured.

`data/builds.json` is written from the sidecars under benchmarks/. It knows no other GPU than
those measured there, so whoever shows an estimate names its machine.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from qvae_trt.profiles import Resolution

if TYPE_CHECKING:
    from qvae_trt.build import Job


def measured_like(job: Job, flavour: str) -> dict[str, Any] | None:
    """The measured engine of the same flavour, part and mode whose size is nearest; None if there
    is none.
    """
    wanted = (flavour, job.part, job.mode)
    alike = [row for row in measured() if (row["flavour"], row["part"], row["mode"]) == wanted]

    def distance(row: dict[str, Any]) -> int:
        if job.resolution is None:
            return 0
        return abs(Resolution.parse(row["size"]).pixels - job.resolution.pixels)

    return min(alike, key=distance, default=None)


@lru_cache(maxsize=1)
def measured() -> list[dict[str, Any]]:
    """Engines of the full VAE that were built once; `size` is None for one with profiles."""
    text = files("qvae_trt").joinpath("data/builds.json").read_text("utf-8")
    engines: list[dict[str, Any]] = json.loads(text)["engines"]
    return engines
