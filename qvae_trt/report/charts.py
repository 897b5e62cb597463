"""Which charts a result makes: latency, speed-up and memory by size, and one result beside
another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from qvae_trt.bench.results import REFERENCE, BenchResult, Cell, Timing
from qvae_trt.profiles import Part, Resolution
from qvae_trt.report.svg import Bar, Chart
from qvae_trt.report.templates import ms, times

#: As the parts are shown.
PART_TITLES: dict[Part, str] = {"decoder": "Decode", "encoder": "Encode"}
#: Of several paths that results share, which is shown.
_PREFERRED = ("static", "profiles", "fused", "compiled", "folded", REFERENCE)


def latency(result: BenchResult) -> list[Chart]:
    """Medians by size, a bar a path, with the whisker from p10 to p90; one chart a part."""

    def bar(cell: Cell) -> Bar | None:
        return None if cell.timing is None else _whiskered(cell.timing)

    words = ("latency in ms, less is better", "median, whisker p10 to p90")
    return _each_part(result, words, ms, bar)


def speedup(result: BenchResult) -> list[Chart]:
    """How many times faster than `pytorch` in the same run; one chart a part."""

    def bar(cell: Cell) -> Bar | None:
        ratio = None if cell.path == REFERENCE else result.speedup(cell)
        return None if ratio is None else Bar(value=ratio)

    words = ("speed-up, more is better", "stock diffusers is 1 (dashed)")
    return _each_part(result, words, times, bar, reference=1.0)


def memory(result: BenchResult) -> list[Chart]:
    """Weights and working memory of one call, in GiB; one chart a part. None on a CPU."""

    def bar(cell: Cell) -> Bar | None:
        return Bar(value=cell.peak_bytes / 2**30) if cell.peak_bytes else None

    words = ("memory in GiB, less is better", "weights and the most that one call takes")
    return _each_part(result, words, lambda gib: f"{gib:.2f}", bar, fastest=False)


def service(result: BenchResult) -> list[Chart]:
    """Latents → PIL by size, a bar a path with its fastest post-processing."""
    bars: dict[str, dict[str, Bar]] = {}
    for row in result.service:
        if row.kind == "latents_to_pil" and row.timing is not None:
            group = bars.setdefault(str(row.resolution), {})
            if row.path not in group or row.timing.median_ms < group[row.path].value:
                group[row.path] = _whiskered(row.timing)
    chart = Chart(
        title="Latents to PIL: latency in ms, less is better",
        subtitle=f"{result.runs[0].place}; decode and the faster post-processing of each path",
        series=result.paths,
        text=ms,
    )
    return _filled(chart, bars)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """One cell that several results have: their medians, None where a result has none."""

    resolution: Resolution
    path: str
    medians: tuple[float | None, ...]


def shared(results: Sequence[BenchResult], part: Part) -> list[Shared]:
    """Cells of a part measured in at least two of the results, by path, then size."""
    sizes = dict.fromkeys(size for result in results for size in result.resolutions)
    paths = dict.fromkeys(path for result in results for path in result.paths)
    found = []
    for path, resolution in product(paths, sizes):
        cells = [result.cell(part, resolution, path) for result in results]
        medians = tuple(c.timing.median_ms if c and c.timing else None for c in cells)
        if sum(m is not None for m in medians) > 1:
            found.append(Shared(resolution=resolution, path=path, medians=medians))
    return found


def contrast(title: str, rows: Sequence[Shared], names: Sequence[str]) -> list[Chart]:
    """Results side by side: the path of a part that most of them share, engines before PyTorch."""
    path = next((path for path in _PREFERRED if any(row.path == path for row in rows)), None)
    series = {str(index): name for index, name in enumerate(names)}
    chart = Chart(
        title=f"{title}, {path}: latency in ms, less is better",
        subtitle="the same path in each file; medians",
        series=tuple(series),
        text=ms,
        labels=series,
    )
    bars = {
        str(row.resolution): {
            key: Bar(value=m) for key, m in zip(series, row.medians, strict=True) if m is not None
        }
        for row in rows
        if row.path == path
    }
    return _filled(chart, bars)


def _each_part(
    result: BenchResult,
    words: tuple[str, str],
    text: Callable[[float], str],
    bar: Callable[[Cell], Bar | None],
    *,
    fastest: bool = True,
    reference: float | None = None,
) -> list[Chart]:
    """A chart a part, a group a size, a bar for each cell that has one; in bold the fastest path,
    else the least bar.
    """
    charts = []
    for part in (part for part in PART_TITLES if part in result.parts):
        chart = Chart(
            title=f"{PART_TITLES[part]}: {words[0]}",
            subtitle=f"{result.place}; {words[1]}",
            series=result.paths,
            text=text,
            reference=reference,
        )
        groups, best = {}, {}
        for size in result.resolutions:
            cells = (result.cell(part, size, path) for path in result.paths)
            bars = {cell.path: drawn for cell in cells if cell and (drawn := bar(cell)) is not None}
            groups[str(size)] = bars
            best[str(size)] = result.fastest(part, size)
        charts += _filled(chart, groups, best if fastest else None)
    return charts


def _filled(
    chart: Chart,
    groups: Mapping[str, Mapping[str, Bar]],
    best: Mapping[str, str | None] | None = None,
) -> list[Chart]:
    """The chart with its bars, the best (else the least) of each group in bold; none without."""
    filled = {label: bars for label, bars in groups.items() if bars}
    # A single bar has nothing to be compared with.
    several = {label: bars.items() for label, bars in filled.items() if len(bars) > 1}
    least = {label: min(bars, key=lambda bar: bar[1].value)[0] for label, bars in several.items()}
    return [replace(chart, groups=filled, best=best or least)] if filled else []


def _whiskered(timing: Timing) -> Bar:
    return Bar(value=timing.median_ms, low=timing.p10_ms, high=timing.p90_ms)
