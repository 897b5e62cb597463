"""What `qvae bench` measured of the fused path and of engines on this machine.

It is kept beside the engines, as `measured.json`; `load_vae(prefer="fastest")` follows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from qvae_trt.errors import StoreError
from qvae_trt.files.values import Positive, read_object
from qvae_trt.files.writing import write_text
from qvae_trt.json_rows import read
from qvae_trt.profiles import PARTS, Mode, Part, Resolution

FILE_NAME = "measured.json"
Way = Literal["fused", "static", "profiles"]
WAYS: tuple[Way, ...] = get_args(Way)
_VERSION = 1

#: Medians of one half at one size, in milliseconds.
Medians = dict[Way, float]


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians by part and size, and what they hold for.

    Attributes:
        machine: the names and versions that must be the same where they are followed.
        medians: of each part, at each size.
    """

    machine: dict[str, str]
    medians: dict[Part, dict[Resolution, Medians]] = field(default_factory=dict)

    def compare(self, part: Part, size: Resolution, mode: Mode) -> tuple[float, float] | None:
        """Milliseconds of the fused path and of an engine, at the measured size whose area is
        nearest; None where both were never measured at one size.
        """
        both = {
            measured: times
            for measured, times in self.medians.get(part, {}).items()
            if "fused" in times and mode in times
        }
        if not both:
            return None
        nearest = min(both, key=lambda other: abs(math.log(other.pixels / size.pixels)))
        times = both[size] if size in both else both[nearest]
        return times["fused"], times[mode]


def load(path: Path) -> Measured:
    """Read a `measured.json`.

    Raises:
        StoreError: it is missing or malformed.
    """
    top = read_object(path, fault=partial(StoreError, fix="delete it, and run qvae bench"))
    top.check_version(_VERSION)
    sizes = Mapping[Resolution, Mapping[Way, Positive]]
    medians = {part: read(sizes, top[part]) for part in PARTS}
    return Measured(read(Mapping[str, str], top["machine"]), medians)


def remember(
    path: Path, machine: Mapping[str, str], medians: Mapping[Part, Mapping[Resolution, Medians]]
) -> None:
    """Add to a `measured.json` what was measured now; of another machine or version, or damaged, it
    is written anew.

    Raises:
        StoreError: it cannot be written.
    """
    before = Measured({})
    with suppress(StoreError):
        before = load(path)
    data: dict[str, object] = {"format_version": _VERSION, "machine": dict(machine)}
    for part in PARTS:
        kept = before.medians.get(part, {}) if before.machine == machine else {}
        for size, times in medians.get(part, {}).items():
            kept[size] = {**kept.get(size, {}), **times}
        data[part] = {str(size): times for size, times in sorted(kept.items())}
    write_text(path, json.dumps(data, indent=1) + "\n")
