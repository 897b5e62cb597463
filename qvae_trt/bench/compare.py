"""Putting results side by side: runs of one machine merged into one table, and a new result held
against an old one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from qvae_trt.bench.results import REFERENCE, BenchResult, Cell, Run, ServiceRow, Tie, Timing
from qvae_trt.errors import BenchError, UsageError
from qvae_trt.json_rows import write
from qvae_trt.profiles import Part, Resolution

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A tie further off than this says that the machine was not in the same state in both runs.
TIE_TOLERANCE = 0.05


def same_machine(left: Run, right: Run) -> bool:
    """Same device and driver; a CPU is told by its name and the cores it gives."""
    return _identity(left) == _identity(right)


def _identity(run: Run) -> tuple[object, ...]:
    names = ("gpu", "driver", "gpu_memory_mib") if run.device == "cuda" else ("cpu", "cpu_count")
    return (run.device, *(run.machine.get(name) for name in names))


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
    for result in results:
        for run in result.runs:
            if not same_machine(first, run):
                raise BenchError(
                    f"two machines cannot share a table: {_name(first)} and {_name(run)}",
                    fix="qvae report A.json B.json compares them side by side",
                )
            for what in ("model", "weights_sha256", "precision"):
                one, other = getattr(first, what), getattr(run, what)
                if one != other:
                    raise BenchError(
                        f"runs of different {what} cannot share a table: {one} and {other}",
                        fix="qvae report A.json B.json compares them side by side",
                    )
    runs: list[Run] = []
    cells: dict[tuple[Part, Resolution, str], Cell] = {}
    ties: list[Tie] = []
    parts: dict[str, list[Any]] = {"floors": [], "service": []}
    for result in results:
        offset = len(runs)
        runs += result.runs
        ties += [replace(tie, run=tie.run + offset) for tie in result.ties]
        for name, rows in parts.items():
            rows += [replace(row, run=row.run + offset) for row in getattr(result, name)]
        for cell in result.cells:
            moved = replace(cell, run=cell.run + offset)
            key = (cell.part, cell.resolution, cell.path)
            kept = cells.get(key)
            if kept is None or (kept.timing is None and moved.timing is not None):
                cells[key] = moved
            elif cell.path == REFERENCE and kept.timing is not None and moved.timing is not None:
                ties.append(
                    Tie(
                        part=cell.part,
                        resolution=cell.resolution,
                        run=moved.run,
                        median_ms=moved.timing.median_ms,
                        ratio=moved.timing.median_ms / kept.timing.median_ms,
                    )
                )
    return BenchResult(
        runs=tuple(runs),
        cells=tuple(cells.values()),
        floors=tuple(parts["floors"]),
        service=_distinct_service(parts["service"]),
        ties=tuple(ties),
    )


def _distinct_service(rows: Sequence[ServiceRow]) -> tuple[ServiceRow, ...]:
    kept: dict[tuple[object, ...], ServiceRow] = {}
    for row in rows:
        key = (row.kind, row.path, row.resolution, row.processor, row.previous)
        # A row without a measurement has no processor: it goes once its path was measured in
        # another run.
        if key not in kept or (kept[key].timing is None and row.timing is not None):
            kept[key] = row
    measured = {(row.kind, row.path, row.resolution) for row in rows if row.timing is not None}
    return tuple(
        row
        for row in kept.values()
        if row.timing is not None or (row.kind, row.path, row.resolution) not in measured
    )


def _name(run: Run) -> str:
    driver = run.machine.get("driver")
    return run.place if driver is None else f"{run.place} (driver {driver})"


def group(results: Sequence[BenchResult]) -> list[list[int]]:
    """Which results complete each other (one machine and model, no path measured twice but
    `pytorch`): lists of indices.

    Two results that both measured, say, `static` at one size are a before and an after, and stay
    apart.
    """
    groups: list[list[int]] = []
    for index, result in enumerate(results):
        for members in groups:
            others = [results[member] for member in members]
            if all(_completes(other, result) for other in others):
                members.append(index)
                break
        else:
            groups.append([index])
    return groups


def _completes(left: BenchResult, right: BenchResult) -> bool:
    one, other = left.runs[0], right.runs[0]
    if not same_machine(one, other):
        return False
    if (one.model, one.weights_sha256, one.precision) != (
        other.model,
        other.weights_sha256,
        other.precision,
    ):
        return False
    found = [
        {
            (cell.part, cell.resolution, cell.path)
            for cell in result.cells
            if cell.timing is not None and cell.path != REFERENCE
        }
        for result in (left, right)
    ]
    return not found[0] & found[1] and all(found)


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
class Comparison:
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

    def verdict(self, change: Change) -> Literal["worse", "better", ""]:
        """Which way a change leaves the margin."""
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
    *,
    margin: float,
    service: bool = False,
) -> None:
    """What `compare` would refuse, said before anything is measured.

    Raises:
        UsageError: a margin outside 0 to 10.
        BenchError: nothing of the old result is to be measured now.
    """
    _check_margin(margin)
    held = [c.resolution for c in old.cells if c.timing is not None and c.part in parts]
    held += [row.resolution for row in old.service if service and row.timing is not None]
    if not set(held) & set(resolutions):
        timed = [cell for cell in old.cells if cell.timing is not None]
        found = ", ".join(dict.fromkeys(str(cell.resolution) for cell in timed)) or "no size"
        of = " and ".join(dict.fromkeys(cell.part for cell in timed)) or "no part"
        asked = ", ".join(map(str, resolutions))
        raise BenchError(
            f"nothing to compare: the old result has {of} at {found}, "
            f"expected {' or '.join(parts)} at {asked}",
            fix="run qvae bench with the --resolution and --part of the old one",
        )


def _check_margin(margin: float) -> None:
    if not 0 <= margin <= 10:
        raise UsageError(f"the margin is {margin}, expected 0 to 10 (0.05 is 5 %)")


def compare(old: BenchResult, new: BenchResult, margin: float = 0.05) -> Comparison:
    """Hold every latency of `new` against `old`.

    A median regresses when it is more than `margin` (0.05: 5 %) above the old one. A cell that was
    measured and is now empty regresses too; one that the new run did not ask for is left alone.

    Raises:
        UsageError: a margin outside 0 to 10.
        BenchError: the two have no measurement in common.
    """
    _check_margin(margin)
    changes = []
    seen = {(cell.part, cell.resolution, cell.path): cell for cell in new.cells}
    for cell in old.cells:
        after = seen.get((cell.part, cell.resolution, cell.path))
        if cell.timing is not None and after is not None:
            changes.append(
                _change(
                    cell.part,
                    cell.resolution,
                    cell.path,
                    cell.timing,
                    after.timing,
                    after.notes,
                    margin,
                )
            )
    served = {
        (row.kind, row.path, row.resolution, row.processor, row.previous): row
        for row in new.service
    }
    for row in old.service:
        later = served.get((row.kind, row.path, row.resolution, row.processor, row.previous))
        # First use is one sample of disk and driver: too coarse for a margin.
        if row.timing is not None and later is not None and row.kind != "first_use":
            what = row.kind if row.processor is None else f"{row.kind} ({row.processor})"
            changes.append(
                _change(
                    what, row.resolution, row.path, row.timing, later.timing, later.notes, margin
                )
            )
    if not changes:
        raise BenchError(
            "the two results have no measurement in common",
            fix="run qvae bench with the --resolution and --baseline of the old one",
        )
    return Comparison(margin=margin, changes=tuple(changes), notes=_differences(old, new))


def _change(
    what: str,
    resolution: Resolution,
    path: str,
    old: Timing,
    new: Timing | None,
    notes: Sequence[str],
    margin: float,
) -> Change:
    if new is None:
        ratio, regressed = None, True
        reason = "no longer measured" + (f": {notes[0]}" if notes else "")
    else:
        ratio = new.median_ms / old.median_ms
        regressed = ratio > 1 + margin
        reason = f"{(ratio - 1) * 100:+.1f} %"
    return Change(
        what=what,
        resolution=resolution,
        path=path,
        old_ms=old.median_ms,
        new_ms=None if new is None else new.median_ms,
        ratio=ratio,
        regressed=regressed,
        reason=reason,
    )


def _differences(old: BenchResult, new: BenchResult) -> tuple[str, ...]:
    notes = []
    before, after = old.runs[0], new.runs[0]
    if not same_machine(before, after):
        notes.append(f"different machines: {_name(before)}, then {_name(after)}")
    for what in ("model", "precision"):
        one, other = getattr(before, what), getattr(after, what)
        if one != other:
            notes.append(f"different {what}: {one}, then {other}")
    for name in sorted({*before.versions, *after.versions}):
        one, other = before.versions.get(name), after.versions.get(name)
        if one != other:
            notes.append(f"{name}: {one or 'absent'}, then {other or 'absent'}")
    return tuple(notes)
