"""What a bench run found, and how it is kept: `latency.json`, documented by
`data/latency.schema.json`.

A result holds one or several runs. Each run is one process on one machine; a cell belongs to a run,
and its speed-up is taken against the `pytorch` cell of that same run. What can be derived
(speed-up, share of the arithmetic floor) is written for readers of the JSON and worked out anew
when it is loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from qvae_trt import store
from qvae_trt.errors import BenchError, QvaeError
from qvae_trt.profiles import PARTS, Part, Resolution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SCHEMA: Final = "qvae/latency"
VERSION: Final = 1
PATHS: Final = ("pytorch", "folded", "compiled", "static", "profiles")
BASELINES: Final = ("pytorch", "folded", "compiled")
#: What is measured on a CPU unasked: compiling takes minutes there.
BASELINES_ON_CPU: Final = ("pytorch", "folded")
ENGINES: Final = ("static", "profiles")
REFERENCE: Final = "pytorch"

Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency in milliseconds. On a GPU the percentiles are between two CUDA events; `wall_ms` is
    the median on the host.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    runs: int
    wall_ms: float | None = None

    @staticmethod
    def of(samples_ms: Sequence[float], *, wall_ms: Sequence[float] | None = None) -> Timing:
        """Summarise at least one sample."""
        ordered = sorted(samples_ms)
        return Timing(
            median_ms=quantile(ordered, 0.5),
            p10_ms=quantile(ordered, 0.1),
            p90_ms=quantile(ordered, 0.9),
            min_ms=ordered[0],
            runs=len(ordered),
            wall_ms=quantile(sorted(wall_ms), 0.5) if wall_ms else None,
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The quantile of ascending values, linear between neighbours (numpy's default)."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


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
    matmul: Mapping[str, Fact] | None = None
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
    def parts(self) -> tuple[Part, ...]:
        return tuple(part for part in PARTS if any(cell.part == part for cell in self.cells))

    @property
    def resolutions(self) -> tuple[Resolution, ...]:
        """In the order measured."""
        return tuple(dict.fromkeys(cell.resolution for cell in self.cells))

    @property
    def paths(self) -> tuple[str, ...]:
        """In the canonical order; names this version does not know come last."""
        found = dict.fromkeys(cell.path for cell in self.cells)
        known = [path for path in PATHS if path in found]
        return (*known, *(path for path in found if path not in PATHS))

    def cell(self, part: Part, resolution: Resolution, path: str) -> Cell | None:
        for cell in self.cells:
            if (cell.part, cell.resolution, cell.path) == (part, resolution, path):
                return cell
        return None

    def reference_ms(self, part: Part, resolution: Resolution, run: int) -> float | None:
        """The median of `pytorch` at this size in this run, if it was measured there."""
        for tie in self.ties:
            if (tie.part, tie.resolution, tie.run) == (part, resolution, run):
                return tie.median_ms
        cell = self.cell(part, resolution, REFERENCE)
        if cell is None or cell.timing is None or cell.run != run:
            return None
        return cell.timing.median_ms

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
        if cell.timing is None:
            return None
        for floor in self.floors:
            if (floor.part, floor.resolution, floor.run) == (cell.part, cell.resolution, cell.run):
                return floor.floor_ms / cell.timing.median_ms
        return None

    def fastest(self, part: Part, resolution: Resolution) -> str | None:
        """The path with the least median, None unless two were measured."""
        timed = [
            (cell.timing.median_ms, cell.path)
            for cell in self.cells
            if cell.timing is not None and (cell.part, cell.resolution) == (part, resolution)
        ]
        return min(timed)[1] if len(timed) > 1 else None

    def mean_speedup(self, part: Part, path: str) -> tuple[float, int] | None:
        """The arithmetic mean over the sizes that have a speed-up, and how many these are."""
        found = [
            ratio
            for cell in self.cells
            if cell.part == part and cell.path == path
            if (ratio := self.speedup(cell)) is not None
        ]
        return (sum(found) / len(found), len(found)) if found else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `data/latency.schema.json` describes it."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "complete": self.complete,
            "runs": [_run_out(run) for run in self.runs],
            "cells": [self._cell_out(cell) for cell in self.cells],
            "floors": [
                {
                    "part": floor.part,
                    "resolution": str(floor.resolution),
                    "run": floor.run,
                    "flops": floor.flops,
                    "floor_ms": floor.floor_ms,
                }
                for floor in self.floors
            ],
            "service": [_service_out(row) for row in self.service],
            "ties": [
                {
                    "part": tie.part,
                    "resolution": str(tie.resolution),
                    "run": tie.run,
                    "median_ms": tie.median_ms,
                    "ratio": tie.ratio,
                }
                for tie in self.ties
            ],
        }

    def _cell_out(self, cell: Cell) -> dict[str, Any]:
        return {
            "part": cell.part,
            "resolution": str(cell.resolution),
            "path": cell.path,
            "run": cell.run,
            "timing": _timing_out(cell.timing),
            "speedup": self.speedup(cell),
            "floor_share": self.floor_share(cell),
            "peak_bytes": cell.peak_bytes,
            "weights_bytes": cell.weights_bytes,
            "detail": dict(cell.detail),
            "notes": list(cell.notes),
        }


def _timing_out(timing: Timing | None) -> dict[str, Any] | None:
    if timing is None:
        return None
    return {
        "median_ms": timing.median_ms,
        "p10_ms": timing.p10_ms,
        "p90_ms": timing.p90_ms,
        "min_ms": timing.min_ms,
        "runs": timing.runs,
        "wall_ms": timing.wall_ms,
    }


def _run_out(run: Run) -> dict[str, Any]:
    return {
        "created": run.created,
        "command": run.command,
        "device": run.device,
        "model": run.model,
        "weights_sha256": run.weights_sha256,
        "precision": run.precision,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "matmul": None if run.matmul is None else dict(run.matmul),
        "settings": dict(run.settings),
        "complete": run.complete,
        "notes": list(run.notes),
    }


def _service_out(row: ServiceRow) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "path": row.path,
        "processor": row.processor,
        "resolution": str(row.resolution),
        "previous": None if row.previous is None else str(row.previous),
        "run": row.run,
        "timing": _timing_out(row.timing),
        "steps": dict(row.steps),
        "notes": list(row.notes),
    }


class _Reader:
    """Takes values out of parsed JSON and says where a wrong one was."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, dict):
            raise BenchError(f"{where}: expected an object, found {type(value).__name__}")
        self.where = where
        self.value = cast("dict[str, Any]", value)

    def _get(self, name: str, kinds: tuple[type, ...], what: str) -> Any:
        if name not in self.value:
            raise BenchError(f"{self.where}: {name!r} is missing")
        found = self.value[name]
        if not isinstance(found, kinds) or (isinstance(found, bool) and bool not in kinds):
            raise BenchError(f"{self.where}.{name}: expected {what}, found {found!r}"[:300])
        return found

    def text(self, name: str) -> str:
        return str(self._get(name, (str,), "a string"))

    def optional_text(self, name: str) -> str | None:
        found = self._get(name, (str, type(None)), "a string or null")
        return None if found is None else str(found)

    def whole(self, name: str) -> int:
        return int(self._get(name, (int,), "an integer"))

    def optional_whole(self, name: str) -> int | None:
        found = self._get(name, (int, type(None)), "an integer or null")
        return None if found is None else int(found)

    def number(self, name: str) -> float:
        found = float(self._get(name, (int, float), "a number"))
        if not 0 <= found < float("inf"):
            raise BenchError(f"{self.where}.{name}: expected a finite number from 0, found {found}")
        return found

    def optional_number(self, name: str) -> float | None:
        return None if self.value.get(name) is None else self.number(name)

    def truth(self, name: str) -> bool:
        return bool(self._get(name, (bool,), "true or false"))

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(str(item) for item in self._get(name, (list,), "a list"))

    def inner(self, name: str) -> _Reader:
        return _Reader(f"{self.where}.{name}", self._get(name, (dict,), "an object"))

    def facts(self, name: str) -> dict[str, Fact]:
        inner = self.inner(name)
        kinds = (str, int, float, bool, type(None))
        return {key: inner._get(key, kinds, "a plain value") for key in inner.value}

    def versions(self, name: str) -> dict[str, str]:
        inner = self.inner(name)
        return {key: inner.text(key) for key in inner.value}

    def steps(self, name: str) -> dict[str, float]:
        inner = self.inner(name)
        return {key: inner.number(key) for key in inner.value}

    def each(self, name: str) -> Iterable[_Reader]:
        for index, item in enumerate(self._get(name, (list,), "a list")):
            yield _Reader(f"{self.where}.{name}[{index}]", item)

    def resolution(self, name: str) -> Resolution:
        return self._resolution(name, self.text(name))

    def optional_resolution(self, name: str) -> Resolution | None:
        found = self.optional_text(name)
        return None if found is None else self._resolution(name, found)

    def _resolution(self, name: str, text: str) -> Resolution:
        try:
            return Resolution.parse(text)
        except QvaeError as error:
            raise BenchError(f"{self.where}.{name}: {error.what}") from error

    def part(self) -> Part:
        found = self.text("part")
        for part in PARTS:
            if part == found:
                return part
        raise BenchError(f"{self.where}.part: expected one of {', '.join(PARTS)}, found {found!r}")

    def timing(self) -> Timing | None:
        if self.value.get("timing") is None:
            return None
        inner = self.inner("timing")
        timing = Timing(
            median_ms=inner.number("median_ms"),
            p10_ms=inner.number("p10_ms"),
            p90_ms=inner.number("p90_ms"),
            min_ms=inner.number("min_ms"),
            runs=inner.whole("runs"),
            wall_ms=inner.optional_number("wall_ms"),
        )
        if timing.median_ms <= 0:
            raise BenchError(
                f"{inner.where}.median_ms: expected more than 0, found {timing.median_ms}"
            )
        return timing


def from_dict(value: object, *, where: str = "latency.json") -> BenchResult:
    """Read what `to_dict` wrote. Raises BenchError naming the place that is wrong."""
    root = _Reader(where, value)
    found = root.value.get("schema")
    if found != SCHEMA:
        raise BenchError(
            f"{where}: this is no bench result: schema is {found!r}, expected {SCHEMA!r}",
            fix="qvae bench --resolution 1024x1024 --out DIR writes DIR/latency.json",
        )
    version = root.whole("version")
    if version != VERSION:
        raise BenchError(
            f"{where}: schema version {version}, this qvae reads version {VERSION}",
            fix="pip install --upgrade qvae-trt" if version > VERSION else "run qvae bench again",
        )
    runs = tuple(
        Run(
            created=item.text("created"),
            command=item.text("command"),
            device=item.text("device"),
            model=item.text("model"),
            weights_sha256=item.text("weights_sha256"),
            precision=item.text("precision"),
            machine=item.facts("machine"),
            versions=item.versions("versions"),
            matmul=None if item.value.get("matmul") is None else item.facts("matmul"),
            settings=item.facts("settings"),
            complete=item.truth("complete"),
            notes=item.texts("notes"),
        )
        for item in root.each("runs")
    )
    if not runs:
        raise BenchError(f"{where}.runs: expected at least one run, found none")
    result = BenchResult(
        runs=runs,
        cells=tuple(
            Cell(
                part=item.part(),
                resolution=item.resolution("resolution"),
                path=item.text("path"),
                run=item.whole("run"),
                timing=item.timing(),
                peak_bytes=item.optional_whole("peak_bytes"),
                weights_bytes=item.optional_whole("weights_bytes"),
                detail=item.facts("detail"),
                notes=item.texts("notes"),
            )
            for item in root.each("cells")
        ),
        floors=tuple(
            Floor(
                part=item.part(),
                resolution=item.resolution("resolution"),
                flops=item.whole("flops"),
                floor_ms=item.number("floor_ms"),
                run=item.whole("run"),
            )
            for item in root.each("floors")
        ),
        service=tuple(
            ServiceRow(
                kind=item.text("kind"),
                path=item.text("path"),
                resolution=item.resolution("resolution"),
                run=item.whole("run"),
                processor=item.optional_text("processor"),
                previous=item.optional_resolution("previous"),
                timing=item.timing(),
                steps=item.steps("steps"),
                notes=item.texts("notes"),
            )
            for item in root.each("service")
        ),
        ties=tuple(
            Tie(
                part=item.part(),
                resolution=item.resolution("resolution"),
                run=item.whole("run"),
                median_ms=item.number("median_ms"),
                ratio=item.number("ratio"),
            )
            for item in root.each("ties")
        ),
    )
    rows: tuple[Cell | Floor | ServiceRow | Tie, ...]
    rows = (*result.cells, *result.floors, *result.service, *result.ties)
    for row in rows:
        if not 0 <= row.run < len(runs):
            raise BenchError(f"{where}: a row names run {row.run}, there are {len(runs)}")
    keys = [(cell.part, cell.resolution, cell.path) for cell in result.cells]
    for key in keys:
        if keys.count(key) > 1:
            raise BenchError(f"{where}: {key[0]} {key[1]} {key[2]} is there more than once")
    return result


def load(path: Path) -> BenchResult:
    """Read a `latency.json`. Raises BenchError if it is missing, no JSON, or no bench result."""
    if path.is_dir():
        path = path / "latency.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}",
            fix="qvae bench --resolution 1024x1024 --out DIR writes DIR/latency.json",
        ) from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise BenchError(f"{path}: line {error.lineno} is no JSON: {error.msg}") from error
    return from_dict(value, where=str(path))


def save(result: BenchResult, path: Path) -> None:
    """Write `latency.json` so that a reader, or a kill half way, finds the old file or the new one,
    both whole.
    """
    write_text(
        path, json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step. Raises StoreError where the file system refuses."""
    with store.replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def with_run(result: BenchResult, **changes: Any) -> BenchResult:
    """The result with its last run changed."""
    return replace(result, runs=(*result.runs[:-1], replace(result.runs[-1], **changes)))
