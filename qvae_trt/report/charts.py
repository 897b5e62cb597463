"""Which charts a result makes: latency, speed-up and memory by size, and one result beside
another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from qvae_trt.bench.results import REFERENCE, BenchResult
from qvae_trt.report import view
from qvae_trt.report.svg import Bar, Chart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qvae_trt.bench.results import Cell
    from qvae_trt.profiles import Part

_VERB = {"encoder": "Encode", "decoder": "Decode"}
_ORDER: tuple[Part, ...] = ("decoder", "encoder")


def latency(result: BenchResult) -> list[Chart]:
    """Medians by size, a bar a path, with the whisker from p10 to p90; one chart a part."""

    def bar(cell: Cell) -> Bar | None:
        took = cell.timing
        if took is None:
            return None
        return Bar(value=took.median_ms, low=took.p10_ms, high=took.p90_ms)

    words = ("latency in ms, less is better", "median, whisker p10 to p90")
    return _each_part(result, words, view.ms, bar)


def speedup(result: BenchResult) -> list[Chart]:
    """How many times faster than `pytorch` in the same run; one chart a part."""

    def bar(cell: Cell) -> Bar | None:
        ratio = None if cell.path == REFERENCE else result.speedup(cell)
        return None if ratio is None else Bar(value=ratio)

    words = ("speed-up, more is better", "stock diffusers is 1 (dashed)")
    return _each_part(result, words, view.times, bar, reference=1.0)


def memory(result: BenchResult) -> list[Chart]:
    """Weights and working memory of one call, in GiB; one chart a part. None on a CPU."""

    def bar(cell: Cell) -> Bar | None:
        return Bar(value=cell.peak_bytes / 2**30) if cell.peak_bytes else None

    words = ("memory in GiB, less is better", "weights and the most that one call takes")
    return _each_part(result, words, lambda gib: f"{gib:.2f}", bar, best=_least)


def service(result: BenchResult) -> list[Chart]:
    """Latents → PIL by size, a bar a path with its fastest post-processing."""
    groups = []
    rows = [
        row for row in result.service if row.kind == "latents_to_pil" and row.timing is not None
    ]
    for resolution in dict.fromkeys(row.resolution for row in rows):
        bars: dict[str, Bar] = {}
        for path in result.paths:
            timings = [
                row.timing
                for row in rows
                if row.resolution == resolution and row.path == path and row.timing is not None
            ]
            if timings:
                timing = min(timings, key=lambda found: found.median_ms)
                bars[path] = Bar(value=timing.median_ms, low=timing.p10_ms, high=timing.p90_ms)
        groups.append((str(resolution), _marked(bars, _least(bars))))
    chart = _chart(
        "Latents to PIL: latency in ms, less is better",
        f"{result.runs[0].place}; decode and the faster post-processing of each path",
        result.paths,
        groups,
        view.ms,
    )
    return [] if chart.empty else [chart]


def contrast(results: Sequence[BenchResult], names: Sequence[str]) -> list[Chart]:
    """Results side by side: for each part the path that most of them share, engines before
    PyTorch.
    """
    rows = view.contrasts(results)
    charts = []
    for part in _ORDER:
        for path in ("static", "profiles", "fused", "compiled", "folded", REFERENCE):
            found = [row for row in rows if row.part == part and row.path == path]
            if not found:
                continue
            keys = [str(index) for index in range(len(results))]
            groups = []
            for row in found:
                known = [m for m in row.medians if m is not None]
                bars = {
                    key: Bar(value=median, best=median == min(known))
                    for key, median in zip(keys, row.medians, strict=True)
                    if median is not None
                }
                groups.append((str(row.resolution), bars))
            charts.append(
                Chart(
                    title=f"{_VERB[part]}, {path}: latency in ms, less is better",
                    subtitle="the same path in each file; medians",
                    series=tuple(keys),
                    groups=tuple(groups),
                    text=view.ms,
                    labels=dict(zip(keys, names, strict=True)),
                )
            )
            break
    return charts


def _parts(result: BenchResult) -> list[Part]:
    return [part for part in _ORDER if part in result.parts]


def _each_part(
    result: BenchResult,
    words: tuple[str, str],
    text: Callable[[float], str],
    bar: Callable[[Cell], Bar | None],
    *,
    best: Callable[[dict[str, Bar]], str | None] | None = None,
    reference: float | None = None,
) -> list[Chart]:
    """A chart a part, a group a size, a bar for each cell that has one; `best` names the one in
    bold, without it the fastest.
    """
    title, subtitle = words
    charts = []
    for part in _parts(result):
        groups = []
        for resolution in result.resolutions:
            cells = [result.cell(part, resolution, path) for path in result.paths]
            drawn = {cell.path: bar(cell) for cell in cells if cell is not None}
            bars = {path: made for path, made in drawn.items() if made is not None}
            chosen = result.fastest(part, resolution) if best is None else best(bars)
            groups.append((str(resolution), _marked(bars, chosen)))
        charts.append(
            _chart(
                f"{_VERB[part]}: {title}",
                f"{result.runs[0].place}; {subtitle}",
                result.paths,
                groups,
                text,
                reference,
            )
        )
    return [chart for chart in charts if not chart.empty]


def _least(bars: dict[str, Bar]) -> str | None:
    """Of one alone nothing is said."""
    return min(bars, key=lambda path: bars[path].value) if len(bars) > 1 else None


def _marked(bars: dict[str, Bar], best: str | None) -> dict[str, Bar]:
    return {path: replace(bar, best=path == best) for path, bar in bars.items()}


def _chart(
    title: str,
    subtitle: str,
    paths: Sequence[str],
    groups: Sequence[tuple[str, dict[str, Bar]]],
    text: Callable[[float], str],
    reference: float | None = None,
) -> Chart:
    return Chart(
        title=title,
        subtitle=subtitle,
        series=tuple(paths),
        groups=tuple((label, bars) for label, bars in groups if bars),
        text=text,
        labels={},
        reference=reference,
    )
