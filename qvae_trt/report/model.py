"""What a report shows of bench results, computed once: Markdown, HTML, SVG and the screen only
render it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qvae_trt.bench.compare import TIE_TOLERANCE
from qvae_trt.bench.results import REFERENCE, BenchResult, Cell, Run, Timing, in_order
from qvae_trt.profiles import Part
from qvae_trt.report import charts
from qvae_trt.report.charts import PART_TITLES
from qvae_trt.report.templates import WORDS, ms, say, share, size, sizes, times

#: A cell whose p10 and p90 are further apart than this share of its median is marked.
WIDE_SPREAD = 0.2
_MARK = "±"
_SPREAD = ("median", "p10", "p90", "min", "runs")
DETAIL_HEAD = ("size", "path", *_SPREAD, "first call", "memory", "of the floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A value in a table that is more than its text.

    Attributes:
        ratio: how many times faster than what it is compared with, printed behind it.
        note: the number of a note, 0 for none.
        code: to be set as code.
    """

    text: str
    ratio: float | None = None
    best: bool = False
    note: int = 0
    code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows under their heads. The first `words` columns hold words, the others figures.

    Attributes:
        text: a paragraph above it.
        means: of each column after the first: the mean speed-up and over how many sizes, None
            where there is none; empty for a table without.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Entry]]
    words: int
    title: str = ""
    text: str = ""
    means: Sequence[tuple[float, int] | None] = ()

    @property
    def entries(self) -> list[list[Entry]]:
        """The rows, each value an entry."""
        return [[e if isinstance(e, Entry) else Entry(text=e) for e in row] for row in self.rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTables:
    """One part: its latencies, the paths that have none and why, and each measurement in detail."""

    title: str
    latencies: Table
    absent: Sequence[tuple[str, str]]
    details: Table


class Report:
    """What a report shows of one bench result.

    Attributes:
        parts: the tables of each part.
        service: the tables of what a server sees.
        notes: the reasons that their entries refer to by number.
        charts: by `latency`, `speedup`, `memory` and `service`; those with nothing in them empty.
    """

    def __init__(self, result: BenchResult) -> None:
        self.result = result
        self._run = result.runs[0]
        self._numbers: dict[str, int] = {}
        self.title = f"Qwen-Image VAE latency on {self._run.place}"
        self.on_cpu = any(run.device == "cpu" for run in result.runs)
        self.parts = [self._part(part) for part in PART_TITLES if part in result.parts]
        kinds = in_order((row.kind for row in result.service), WORDS.service_titles)
        self.service = [self._service(kind) for kind in kinds]
        self.notes = list(self._numbers)
        drawn = (charts.latency, charts.speedup, charts.memory, charts.service)
        self.charts = {chart.__name__: chart(result) for chart in drawn}

    @property
    def subtitle(self) -> str:
        """Model, precision, libraries, day."""
        run, runs = self._run, self.result.runs
        torch = [run.versions["torch"] for run in runs if "torch" in run.versions][-1:]
        words = [f"model {run.model}", f"PyTorch in {run.precision}", *_flavours(self.result)]
        return ", ".join([*words, *(f"PyTorch {version}" for version in torch), run.created[:10]])

    @property
    def remarks(self) -> list[str]:
        """What a reader must know before the figures: CPU, unfinished, ties that are off."""
        runs = self.result.runs
        # Of a merge, what holds for each of its runs: what one left out, another may have measured.
        notes = [note for note in self._run.notes if all(note in run.notes for run in runs)]
        notes = [" ".join(note.split()) for note in notes]
        return say("remarks", self.result, notes, TIE_TOLERANCE, REFERENCE).splitlines()

    @property
    def legend(self) -> str:
        """What each column is."""
        return say("legend", self.result.paths)

    @property
    def spread(self) -> str:
        """From how many runs the medians are, and what the mark of a wide spread says."""
        timed = [cell.timing for cell in self.result.cells if cell.timing is not None]
        runs = [timing.runs for timing in timed]
        return say("spread", runs, any(map(_is_wide, timed)), _MARK, f"{WIDE_SPREAD:.0%}")

    @property
    def method(self) -> str:
        """How the figures were taken, with the numbers of the first run."""
        return say("method", self._run, self._run.matmul or {"tflops": 0})

    @property
    def best(self) -> list[tuple[str, str, str]]:
        """The two best mean speed-ups of each part, each with what it is of."""
        best = []
        for part, title in PART_TITLES.items():
            means = [
                (mean, path)
                for path in self.result.paths
                if path != REFERENCE and (mean := self.result.mean_speedup(part, path)) is not None
            ]
            best += [
                (times(ratio), f"{title.lower()}, {path}", f"mean over {sizes(count)}")
                for (ratio, count), path in sorted(means, reverse=True)[:2]
            ]
        return best

    @property
    def machines(self) -> list[Table]:
        tables = []
        for number, run in enumerate(self.result.runs, 1):
            title = f"Machine, run {number}" if len(self.result.runs) > 1 else "Machine"
            tables.append(Table(head=("", ""), rows=_machine_rows(run), words=2, title=title))
        return tables

    def _note(self, reasons: Sequence[str]) -> int:
        """The number of a reason; the same reason gets the same one."""
        reason = "; ".join(reasons)
        return self._numbers.setdefault(reason, len(self._numbers) + 1) if reason else 0

    def _part(self, part: Part) -> PartTables:
        result, title = self.result, PART_TITLES[part]
        cells = [cell for cell in result.cells if cell.part == part]
        timed = {cell.path for cell in cells if cell.timing is not None}
        shown = [path for path in result.paths if path in timed]
        rows: list[tuple[str | Entry, ...]] = []
        details = []
        for resolution in result.resolutions:
            found = {path: result.cell(part, resolution, path) for path in shown}
            if any(found.values()):
                fastest = result.fastest(part, resolution)
                entries = [self._latency(cell, path == fastest) for path, cell in found.items()]
                rows.append((str(resolution), *entries))
            details += [self._detail(c, c.timing) for c in found.values() if c and c.timing]
        means = [None if path == REFERENCE else result.mean_speedup(part, path) for path in shown]
        latencies = Table(
            head=("size", *shown),
            rows=rows,
            words=1,
            title=f"{title}, ms",
            means=means if any(means) else (),
        )
        absent = [
            (path, _absence(cells, path))
            for path in result.paths
            if path not in timed and any(cell.path == path for cell in cells)
        ]
        detailed = Table(head=DETAIL_HEAD, rows=details, words=2)
        return PartTables(title=title, latencies=latencies, absent=absent, details=detailed)

    def _latency(self, cell: Cell | None, is_fastest: bool) -> Entry:
        if cell is None:
            return Entry(text=ms(None))
        return Entry(
            text=_median(cell.timing),
            ratio=None if cell.path == REFERENCE else self.result.speedup(cell),
            best=is_fastest,
            note=self._note(cell.notes),
        )

    def _detail(self, cell: Cell, timing: Timing) -> tuple[str, ...]:
        """Spread, first call, memory and share of the floor; milliseconds where no unit."""
        first = cell.detail.get("first_ms")
        return (
            str(cell.resolution),
            cell.path,
            *map(ms, (timing.median_ms, timing.p10_ms, timing.p90_ms, timing.min_ms)),
            str(timing.runs),
            ms(float(first)) if isinstance(first, int | float) else "–",
            size(cell.peak_bytes),
            share(self.result.floor_share(cell)),
        )

    def _service(self, kind: str) -> Table:
        # Why a path is missing altogether is told beside the latencies.
        served = {row.path for row in self.result.service if row.timing is not None}
        rows = [row for row in self.result.service if row.kind == kind and row.path in served]
        steps = in_order((step for row in rows for step in row.steps), WORDS.step_titles)
        total = [] if kind == "switch" else ["total"]
        words = ["size", "path"]
        if any(row.previous for row in rows):
            words.insert(1, "after")
        if any(row.processor for row in rows) and kind == "latents_to_pil":
            words.append("processor")
        body = []
        for row in rows:
            named = {"size": row.resolution, "after": row.previous, "path": row.path}
            named["processor"] = row.processor
            median = None if row.timing is None else row.timing.median_ms
            figures = [*([median] if total else []), *(row.steps.get(step) for step in steps)]
            entries: list[str | Entry] = [ms(figure) for figure in figures]
            if row.timing is None and entries:
                entries[0] = Entry(text="–", note=self._note(row.notes))
            body.append([*(str(named[word] or "–") for word in words), *entries])
        return Table(
            head=(*words, *total, *(WORDS.step_titles.get(step, step) for step in steps)),
            rows=body,
            words=len(words),
            title=WORDS.service_titles.get(kind, kind),
            text=say("service", kind),
        )


def contrast(results: Sequence[BenchResult], names: Sequence[str]) -> dict[str, object]:
    """Results side by side, the first one as the baseline; `names` are what each is called.

    Returns: for the template: `tables` and `charts` of what they measured in common, and the table
        `differing` of what differs in their machines.
    """
    tables, drawn = [], []
    for part, title in PART_TITLES.items():
        if shared := charts.shared(results, part):
            head, rows = ("size", "path", *names), list(map(_contrast_row, shared))
            tables.append(Table(head=head, rows=rows, words=2, title=f"{title}, ms"))
            drawn += charts.contrast(title, shared, names)
    facts = [_telling(result) for result in results]
    differing = [
        (name, *(fact.get(name, "–") for fact in facts))
        for name in dict.fromkeys(name for fact in facts for name in fact)
        if len({fact.get(name) for fact in facts}) > 1
    ]
    differences = Table(head=("", *names), rows=differing, words=len(names) + 1)
    return {"tables": tables, "differing": differences, "charts": drawn}


def _contrast_row(row: charts.Shared) -> tuple[str | Entry, ...]:
    first, *others = row.medians
    best = min(median for median in row.medians if median is not None)
    ratios = [None, *(first / median if first and median else None for median in others)]
    figures = (
        Entry(text=ms(median), ratio=ratio, best=median == best)
        for median, ratio in zip(row.medians, ratios, strict=True)
    )
    return (str(row.resolution), row.path, *figures)


def labels(results: Sequence[BenchResult]) -> list[str]:
    """A short name for each of several results: what tells them apart, machine first."""
    options = []
    for result in results:
        run, flavours = result.runs[0], " + ".join(_flavours(result))
        what = flavours or f"PyTorch {run.versions.get('torch', '')}"
        longer = f"{run.place}, {flavours}" if flavours else run.place
        options.append((run.place, longer, f"{run.place}, {what}, {run.created[:10]}"))
    for names in map(list, zip(*options, strict=True)):
        if len(set(names)) == len(names):
            return names
    return [f"{option[2]} (#{index + 1})" for index, option in enumerate(options)]


def _flavours(result: BenchResult) -> list[str]:
    """The libraries that the engines ran in, from the cells that were measured."""
    found = [
        f"{cell.detail['flavour']} {cell.detail.get('engine_precision', '')}".strip()
        for cell in result.cells
        if cell.timing is not None and cell.detail.get("flavour")
    ]
    return list(dict.fromkeys(found))


def _median(timing: Timing | None) -> str:
    """The median in milliseconds, with a mark if its spread is wide."""
    if timing is None:
        return ms(None)
    return f"{ms(timing.median_ms)} {_MARK}" if _is_wide(timing) else ms(timing.median_ms)


def _is_wide(timing: Timing) -> bool:
    return timing.p90_ms - timing.p10_ms > WIDE_SPREAD * timing.median_ms


def _absence(cells: Sequence[Cell], path: str) -> str:
    first, *others = dict.fromkeys(
        note for cell in cells if cell.path == path for note in cell.notes
    ) or ["no reason recorded"]
    return f"{first} (and {len(others)} more like it)" if others else first


def _machine_rows(run: Run) -> list[tuple[str, str | Entry]]:
    """Facts of the machine and the versions, in a fixed order; unknown facts last."""
    rows: list[tuple[str, str | Entry]] = []
    for name in in_order(run.machine, WORDS.machine_titles):
        value = run.machine[name]
        if value is not None and name != "gpu_memory_mib":
            is_size = name.endswith("_bytes") and not isinstance(value, str)
            shown = size(float(value)) if is_size else str(value)
            rows.append((WORDS.machine_titles.get(name, name), shown))
    rows += [
        *run.versions.items(),
        ("model", run.model),
        ("weights sha256", Entry(text=run.weights_sha256[:16], code=True)),
        ("precision of PyTorch", run.precision),
    ]
    if run.matmul is not None:
        rows.append(("matrix product", f"{float(run.matmul.get('tflops') or 0):.4g} TFLOP/s"))
    command = Entry(text=run.command or "–", code=True)
    return [*rows, ("measured", run.created), ("command", command)]


def _telling(result: BenchResult) -> dict[str, str | Entry]:
    """The facts that may explain a difference between two results."""
    facts = dict([("engines", ", ".join(_flavours(result)) or "–"), *_machine_rows(result.runs[0])])
    return {name: fact for name, fact in facts.items() if not name.startswith("temperature")}
