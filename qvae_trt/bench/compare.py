"""Several results: runs of one machine merged into one table, and a new result compared with an old
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qvae_trt.bench.results import REFERENCE, BenchResult, Cell, Run, ServiceRow, Tie, Timing
from qvae_trt.errors import BenchError, UsageError
from qvae_trt.json_rows import write
from qvae_trt.profiles import Part, Resolution

#: If a tie differs by more than this, the machine was not in the same state in both runs.
TIE_TOLERANCE = 0.05
#: What runs must have in common to share a table.
_SUBJECT = ("model", "weights_sha256", "precision")


def machine_of(run: Run) -> tuple[object, ...]:
    """The device and driver of a run; for a CPU its name and how many cores it gives."""
    names = ("gpu", "driver", "gpu_memory_mib") if run.device == "cuda" else ("cpu", "cpu_count")
    return (run.device, *(run.machine.get(name) for name in names))


def _key(row: Cell | ServiceRow) -> tuple[object, ...]:
    """The same for two measurements of the same thing."""
    if isinstance(row, Cell):
        return (row.part, row.resolution, row.path)
    return (row.kind, row.path, row.resolution, row.processor, row.previous)


def merge(results: Sequence[BenchResult]) -> BenchResult:
    """One table of several runs of one machine and model, such as the engines' and torch.compile's.

    Each cell keeps its run, and its speed-up stays that against `pytorch` in its own run. Of two
    cells of the same path and size the first measured one is kept; of `pytorch`, seen in several
    runs, the others become ties.

    Raises:
        BenchError: nothing given, or another machine, model or precision.
    """
    if not results:
        raise BenchError("nothing to merge: expected at least one latency.json")
    first = results[0].runs[0]
    beside = "qvae report A.json B.json compares them side by side"
    for run in (run for result in results for run in result.runs):
        if machine_of(first) != machine_of(run):
            names = f"{_name(first)} and {_name(run)}"
            raise BenchError(f"two machines cannot share a table: {names}", fix=beside)
        for what in _SUBJECT:
            expected, found = getattr(first, what), getattr(run, what)
            if expected != found:
                words = f"runs of different {what} cannot share a table: {expected} and {found}"
                raise BenchError(words, fix=beside)
    runs: list[Run] = []
    cells: dict[tuple[object, ...], Cell] = {}
    parts: dict[str, list[Any]] = {"floors": [], "service": [], "ties": []}
    for result in results:
        offset = len(runs)
        runs += result.runs
        for name, rows in parts.items():
            rows += [replace(row, run=row.run + offset) for row in getattr(result, name)]
        for cell in result.cells:
            moved = replace(cell, run=cell.run + offset)
            kept = cells.setdefault(_key(cell), moved)
            if kept.timing is None:
                cells[_key(cell)] = kept if moved.timing is None else moved
            elif moved.timing is not None and kept is not moved and cell.path == REFERENCE:
                tie = Tie(
                    part=cell.part,
                    resolution=cell.resolution,
                    run=moved.run,
                    median_ms=moved.timing.median_ms,
                    ratio=moved.timing.median_ms / kept.timing.median_ms,
                )
                parts["ties"].append(tie)
    return BenchResult(
        runs=tuple(runs),
        cells=tuple(cells.values()),
        floors=tuple(parts["floors"]),
        service=_distinct_service(parts["service"]),
        ties=tuple(parts["ties"]),
    )


def _distinct_service(rows: Sequence[ServiceRow]) -> tuple[ServiceRow, ...]:
    # A row without a measurement has no processor: it goes once its path was measured in another
    # run.
    measured = {(row.kind, row.path, row.resolution) for row in rows if row.timing is not None}
    kept: dict[tuple[object, ...], ServiceRow] = {}
    for row in rows:
        if row.timing is not None or (row.kind, row.path, row.resolution) not in measured:
            kept.setdefault(_key(row), row)
    return tuple(kept.values())


def _name(run: Run) -> str:
    driver = run.machine.get("driver")
    return run.place if driver is None else f"{run.place} (driver {driver})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One measurement in both results. `ratio` is new over old: 1.10 is a tenth slower."""

    what: str
    resolution: Resolution
    path: str
    old_ms: float
    new_ms: float | None
    ratio: float | None
    regressed: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """A new result against an old one, and what got worse past the margin."""

    margin: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regressed)

    @property
    def ok(self) -> bool:
        return not self.regressions

    @property
    def summary(self) -> str:
        """One line: how many medians got worse, and the first of them."""
        worse = self.regressions
        bound = f"worse by more than {self.margin * 100:g} %"
        if not worse:
            return f"none of {len(self.changes)} medians is {bound}"
        are = "is" if len(worse) == 1 else "are"
        first = worse[0]
        lost = " or no longer measured" if any(c.ratio is None for c in worse) else ""
        return (
            f"{len(worse)} of {len(self.changes)} medians {are} {bound}{lost}, the first: "
            f"{first.what} {first.resolution} {first.path}: {first.reason}"
        )

    def direction(self, change: Change) -> Literal["worse", "better", ""]:
        """On which side of the margin a change is."""
        if change.regressed:
            return "worse"
        faster = change.ratio is not None and change.ratio < 1 - self.margin
        return "better" if faster else ""

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **write(self)}


def check_comparable(
    old: BenchResult,
    resolutions: Sequence[Resolution],
    parts: Sequence[Part],
    paths: Sequence[str],
    *,
    service: bool = False,
) -> None:
    """What `compare` would refuse, checked before anything is measured.

    Raises:
        BenchError: nothing of the old result is to be measured now.
    """
    timed = [cell for cell in old.cells if cell.timing is not None]
    rows: list[Cell | ServiceRow] = [cell for cell in timed if cell.part in parts]
    rows += [row for row in old.service if service and _compared(row)]
    if not any(row.resolution in resolutions and row.path in paths for row in rows):
        found = ", ".join(dict.fromkeys(str(cell.resolution) for cell in timed)) or "no size"
        of = " and ".join(dict.fromkeys(cell.part for cell in timed)) or "no part"
        by = ", ".join(dict.fromkeys(cell.path for cell in timed)) or "no path"
        raise BenchError(
            f"nothing to compare: the old result has {of} at {found} with {by}, "
            f"expected {' or '.join(parts)} at {', '.join(map(str, resolutions))}"
            f" with {', '.join(paths)}",
            fix="run qvae bench with the --resolution, --part and --baseline of the old one",
        )


def _compared(row: ServiceRow) -> bool:
    # First use is one sample of disk and driver: too coarse for a margin.
    return row.timing is not None and row.kind != "first_use"


def check_margin(margin: float) -> None:
    """UsageError for a margin outside 0 to 10."""
    if not 0 <= margin <= 10:
        raise UsageError(f"the margin is {margin}, expected 0 to 10 (0.05 is 5 %)")


def compare(old: BenchResult, new: BenchResult, margin: float = 0.05) -> Changes:
    """Compare every latency of `new` with `old`.

    A median regresses when it is more than `margin` (0.05: 5 %) above the old one. A cell that was
    measured and is now empty regresses too; one that the new run did not ask for is left alone.

    Raises:
        UsageError: a margin outside 0 to 10.
        BenchError: the two have no measurement in common.
    """
    check_margin(margin)
    measured: list[Cell | ServiceRow] = [*new.cells, *new.service]
    later = {_key(row): row for row in measured}
    rows: list[Cell | ServiceRow] = [*old.cells, *filter(_compared, old.service)]
    changes = tuple(
        _change(row, row.timing, later[_key(row)], margin)
        for row in rows
        if row.timing is not None and _key(row) in later
    )
    if not changes:
        raise BenchError(
            "the two results have no measurement in common",
            fix="run qvae bench with the --resolution and --baseline of the old one",
        )
    return Changes(margin=margin, changes=changes, notes=_differences(old, new))


def _change(
    row: Cell | ServiceRow, before: Timing, after: Cell | ServiceRow, margin: float
) -> Change:
    what = row.part if isinstance(row, Cell) else row.kind
    if isinstance(row, ServiceRow) and row.processor is not None:
        what = f"{what} ({row.processor})"
    new_ms, ratio = None, None
    reason = "no longer measured" + (f": {after.notes[0]}" if after.notes else "")
    if after.timing is not None:
        new_ms = after.timing.median_ms
        ratio = new_ms / before.median_ms
        reason = f"{(ratio - 1) * 100:+.1f} %"
    return Change(
        what=what,
        resolution=row.resolution,
        path=row.path,
        old_ms=before.median_ms,
        new_ms=new_ms,
        ratio=ratio,
        regressed=ratio is None or ratio > 1 + margin,
        reason=reason,
    )


def _differences(earlier: BenchResult, later: BenchResult) -> tuple[str, ...]:
    notes = []
    before, after = earlier.runs[0], later.runs[0]
    if machine_of(before) != machine_of(after):
        notes.append(f"different machines: {_name(before)}, then {_name(after)}")
    named = ("model", "precision")
    pairs = [(f"different {name}", getattr(before, name), getattr(after, name)) for name in named]
    pairs += [
        (name, before.versions.get(name, "absent"), after.versions.get(name, "absent"))
        for name in sorted({*before.versions, *after.versions})
    ]
    notes += [f"{what}: {old}, then {new}" for what, old, new in pairs if old != new]
    return tuple(notes)
