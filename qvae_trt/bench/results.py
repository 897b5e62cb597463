"""What a bench run found, and how it is kept: `latency.json`, documented by
`data/latency.schema.json`.

A result holds one or several runs. Each run is one process on one machine; a cell belongs to a run,
and its speed-up is taken against the `pytorch` cell of that same run. What can be derived
(speed-up, share of the arithmetic floor) is written for readers of the JSON and computed again
when it is loaded.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final

from qvae_trt.errors import BenchError
from qvae_trt.files.values import Count, Positive, Value, read_object
from qvae_trt.files.values import Fact as Fact
from qvae_trt.files.writing import RESULTS, refusals_named, write_text
from qvae_trt.json_rows import read, write
from qvae_trt.profiles import MODES, PARTS, Part, Resolution

SCHEMA: Final = "qvae/latency"
VERSION: Final = 1
_MAKE_ONE: Final = "qvae bench --resolution 1024x1024 --out DIR writes DIR/latency.json"
BASELINES: Final = ("pytorch", "folded", "compiled", "fused")
#: What is measured on a CPU unasked: compiling takes minutes there.
BASELINES_ON_CPU: Final = ("pytorch", "folded")
ENGINES: Final = MODES
PATHS: Final = (*BASELINES, *ENGINES)
REFERENCE: Final = "pytorch"


def _matmul(facts: Value) -> Mapping[str, Fact]:
    facts["tflops"].positive()
    return read(Mapping[str, Fact], facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency in milliseconds. On a GPU the percentiles are between two CUDA events; `wall_ms` is
    the median on the host.
    """

    median_ms: Positive
    p10_ms: Positive
    p90_ms: Positive
    min_ms: Positive
    runs: Count
    wall_ms: float | None = None

    @staticmethod
    def of(samples_ms: Sequence[float], *, wall_ms: Sequence[float] = ()) -> Timing:
        """Summarise at least one sample."""
        import numpy

        p10, median, p90 = map(float, numpy.quantile(samples_ms, (0.1, 0.5, 0.9)))
        return Timing(
            median_ms=median,
            p10_ms=p10,
            p90_ms=p90,
            min_ms=min(samples_ms),
            runs=len(samples_ms),
            wall_ms=float(numpy.median(wall_ms)) if wall_ms else None,
        )


def in_order(found: Iterable[str], known: Collection[str]) -> list[str]:
    """Each name once: the known ones in their order, then the others."""
    names = dict.fromkeys(found)
    return [*(n for n in known if n in names), *(n for n in names if n not in known)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One path at one size: measured, or empty with the reason in `notes`.

    `peak_bytes` is what the path needs on the device while it runs: its own weights, its
    activations or engine scratch, its output. `detail` says what ran (engine file, profile, seconds
    of compilation).
    """

    part: Part
    resolution: Resolution
    path: str
    run: int = 0
    timing: Timing | None = None
    peak_bytes: int | None = None
    weights_bytes: int | None = None
    detail: Mapping[str, Fact] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """The folded graph's arithmetic at one size, and the least time it can take at the matmul rate
    of its run.
    """

    part: Part
    resolution: Resolution
    flops: int
    floor_ms: float
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """What a server sees of the decoder. `kind`: latents_to_pil, first_use or switch; `steps` are
    medians in ms.
    """

    kind: str
    path: str
    resolution: Resolution
    run: int = 0
    processor: str | None = None
    previous: Resolution | None = None
    timing: Timing | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """The same `pytorch` cell seen by another run of the merge: `ratio` is its median over the kept
    one's.
    """

    part: Part
    resolution: Resolution
    run: int
    median_ms: float
    ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One bench process: the command, the model, the machine, the settings."""

    created: str
    command: str
    device: str
    model: str
    weights_sha256: str
    precision: str
    machine: Mapping[str, Fact] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    matmul: Annotated[Mapping[str, Fact], _matmul] | None = None
    settings: Mapping[str, Fact] = field(default_factory=dict)
    complete: bool = True
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The GPU's name, or the CPU's where nothing ran on a GPU."""
        return str(self.machine.get("gpu" if self.device == "cuda" else "cpu") or self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """Everything a bench measured. Cells are unique by (part, resolution, path)."""

    runs: tuple[Run, ...]
    cells: tuple[Cell, ...] = ()
    floors: tuple[Floor, ...] = ()
    service: tuple[ServiceRow, ...] = ()
    ties: tuple[Tie, ...] = ()

    @property
    def complete(self) -> bool:
        return all(run.complete for run in self.runs)

    @property
    def place(self) -> str:
        """The card, and what ran the engines: `NVIDIA H100 80GB HBM3, tensorrt 8.6.1`."""
        flavours = [
            str(cell.detail["flavour"])
            for cell in self.cells
            if cell.timing is not None and cell.detail.get("flavour")
        ]
        return ", ".join(dict.fromkeys((self.runs[0].place, *flavours)))

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if any(cell.part == part for cell in self.cells))

    @property
    def resolutions(self) -> tuple[Resolution, ...]:
        """In the order measured."""
        return tuple(dict.fromkeys(cell.resolution for cell in self.cells))

    @property
    def paths(self) -> tuple[str, ...]:
        """In the canonical order; names this version does not know come last."""
        return tuple(in_order((cell.path for cell in self.cells), PATHS))

    def cell(self, part: Part, resolution: Resolution, path: str) -> Cell | None:
        key = (part, resolution, path)
        return next((c for c in self.cells if (c.part, c.resolution, c.path) == key), None)

    def reference_ms(self, part: Part, resolution: Resolution, run: int) -> float | None:
        """The median of `pytorch` at this size in this run, if it was measured there."""
        key = (part, resolution, run)
        medians = [tie.median_ms for tie in self.ties if (tie.part, tie.resolution, tie.run) == key]
        cell = self.cell(part, resolution, REFERENCE)
        if cell is not None and cell.timing is not None and cell.run == run:
            medians.append(cell.timing.median_ms)
        return medians[0] if medians else None

    def speedup(self, cell: Cell) -> float | None:
        """`pytorch` over this path, both medians of the same run."""
        reference = self.reference_ms(cell.part, cell.resolution, cell.run)
        if cell.timing is None or reference is None:
            return None
        return reference / cell.timing.median_ms

    def floor_share(self, cell: Cell) -> float | None:
        """The arithmetic floor over the median: 1 would be a path that does nothing but matrix
        products.
        """
        key = (cell.part, cell.resolution, cell.run)
        floors = [f.floor_ms for f in self.floors if (f.part, f.resolution, f.run) == key]
        return floors[0] / cell.timing.median_ms if floors and cell.timing is not None else None

    def fastest(self, part: Part, resolution: Resolution) -> str | None:
        """The path with the least median, None unless two were measured."""
        timed = [
            (cell.timing.median_ms, cell.path)
            for cell in self.cells
            if cell.timing is not None and (cell.part, cell.resolution) == (part, resolution)
        ]
        return min(timed)[1] if len(timed) > 1 else None

    def mean_speedup(self, part: Part, path: str) -> tuple[float, int] | None:
        """The arithmetic mean over sizes, and how many these are: those at which every path has a
        speed-up that has one at all, so that the means of all paths can be compared.
        """
        ratios: dict[str, dict[Resolution, float]] = {}
        for cell in self.cells:
            ratio = self.speedup(cell) if cell.part == part else None
            if ratio is not None:
                ratios.setdefault(cell.path, {})[cell.resolution] = ratio
        if path not in ratios:
            return None
        shared = set.intersection(*map(set, ratios.values()))
        if not shared:
            return None
        return sum(ratios[path][size] for size in shared) / len(shared), len(shared)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `data/latency.schema.json` describes it."""
        cells = [
            write(cell) | {"speedup": self.speedup(cell), "floor_share": self.floor_share(cell)}
            for cell in self.cells
        ]
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "complete": self.complete,
            **write(self),
            "cells": cells,
        }


def load(path: Path) -> BenchResult:
    """Read a `latency.json`. Raises BenchError if it is missing, no JSON, or no bench result."""
    if path.is_dir():
        path = path / "latency.json"
    root = read_object(path, fault=partial(BenchError, fix=_MAKE_ONE))
    found = root.data.get("schema")
    if found != SCHEMA:
        raise BenchError(
            f"{path}: this is no bench result: schema is {found!a:.100}, expected {SCHEMA!r}",
            fix=_MAKE_ONE,
        )
    version = root["version"].integer()
    if version != VERSION:
        raise BenchError(
            f"{path}: schema version {version}, this qvae reads version {VERSION}",
            fix="pip install --upgrade qvae-trt" if version > VERSION else "run qvae bench again",
        )
    # What is not read here is left alone: a later qvae may add to this format.
    result: BenchResult = read(BenchResult, root)
    if not result.runs:
        root["runs"].refuse("expected at least one run, found none")
    for name in ("cells", "floors", "service", "ties"):
        for row in getattr(result, name):
            if row.run >= len(result.runs):
                root[name].refuse(f"a row names run {row.run}, there are {len(result.runs)}")
    names = Counter(f"{cell.part} {cell.resolution} {cell.path}" for cell in result.cells)
    for name, times in names.items():
        if times > 1:
            root["cells"].refuse(f"{name} is there more than once")
    return result


def save(result: BenchResult, path: Path) -> None:
    """Write `latency.json`, whole or not at all. Raises StoreError."""
    text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def set_aside(path: Path) -> Path | None:
    """Rename an earlier result, so that the next one does not replace it. Returns its new path, or
    None if there was none. Raises StoreError.
    """
    if not path.is_file():
        return None
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    with refusals_named("write", kept, option=RESULTS):
        path.rename(kept)
    return kept
