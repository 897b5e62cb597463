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
    from collections.abc import Sequence

    from qvae_trt.profiles import Part

_VERB = {"encoder": "Encode", "decoder": "Decode"}
_ORDER: tuple[Part, ...] = ("decoder", "encoder")


def latency(result: BenchResult) -> list[Chart]:
    """Medians by size, a bar a path, with the whisker from p10 to p90; one chart a part."""
    charts = []
    for part in _parts(result):
        groups = []
        for resolution in result.resolutions:
            fastest = result.fastest(part, resolution)
            bars = {}
            for path in result.paths:
                cell = result.cell(part, resolution, path)
                if cell is not None and cell.timing is not None:
                    bars[path] = Bar(
                        value=cell.timing.median_ms,
                        low=cell.timing.p10_ms,
                        high=cell.timing.p90_ms,
                        best=path == fastest,
                    )
            groups.append((str(resolution), bars))
        charts.append(
            _chart(
                f"{_VERB[part]}: latency in ms, less is better",
                f"{result.runs[0].place}; median, whisker p10 to p90",
                result.paths,
                groups,
                view.ms,
            )
        )
    return [chart for chart in charts if not chart.empty]


def speedup(result: BenchResult) -> list[Chart]:
    """How many times faster than `pytorch` in the same run; one chart a part."""
    charts = []
    for part in _parts(result):
        groups = []
        for resolution in result.resolutions:
            fastest = result.fastest(part, resolution)
            bars = {}
            for path in result.paths:
                cell = result.cell(part, resolution, path)
                ratio = None if cell is None or path == REFERENCE else result.speedup(cell)
                if ratio is not None:
                    bars[path] = Bar(value=ratio, best=path == fastest)
            groups.append((str(resolution), bars))
        charts.append(
            _chart(
                f"{_VERB[part]}: speed-up, more is better",
                f"{result.runs[0].place}; PyTorch as shipped is 1 (dashed)",
                result.paths,
                groups,
                view.times,
                reference=1.0,
            )
        )
    return [chart for chart in charts if not chart.empty]


def memory(result: BenchResult) -> list[Chart]:
    """Weights and working memory of one call, in GiB; one chart a part. None on a CPU."""
    charts = []
    for part in _parts(result):
        groups = []
        for resolution in result.resolutions:
            cells = [result.cell(part, resolution, path) for path in result.paths]
            known = {cell.path: cell.peak_bytes for cell in cells if cell and cell.peak_bytes}
            least = min(known.values(), default=0)
            bars = {
                path: Bar(value=found / 2**30, best=found == least) for path, found in known.items()
            }
            groups.append((str(resolution), bars))
        charts.append(
            _chart(
                f"{_VERB[part]}: memory in GiB, less is better",
                f"{result.runs[0].place}; weights and the most that one call takes",
                result.paths,
                groups,
                lambda gib: f"{gib:.2f}",
            )
        )
    return [chart for chart in charts if not chart.empty]


def service(result: BenchResult) -> list[Chart]:
    """Latents → PIL by size, a bar a path with its fastest post-processing."""
    groups = []
    rows = [
        row for row in result.service if row.kind == "latents_to_pil" and row.timing is not None
    ]
    for resolution in dict.fromkeys(row.resolution for row in rows):
        best: dict[str, Bar] = {}
        for path in result.paths:
            timings = [
                row.timing
                for row in rows
                if row.resolution == resolution and row.path == path and row.timing is not None
            ]
            if timings:
                timing = min(timings, key=lambda found: found.median_ms)
                best[path] = Bar(value=timing.median_ms, low=timing.p10_ms, high=timing.p90_ms)
        if len(best) > 1:
            first = min(best, key=lambda path: best[path].value)
            best[first] = replace(best[first], best=True)
        groups.append((str(resolution), best))
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
        for path in ("static", "profiles", "compiled", "folded", REFERENCE):
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


def _chart(
    title: str,
    subtitle: str,
    paths: Sequence[str],
    groups: Sequence[tuple[str, dict[str, Bar]]],
    text: object,
    reference: float | None = None,
) -> Chart:
    return Chart(
        title=title,
        subtitle=subtitle,
        series=tuple(paths),
        groups=tuple((label, bars) for label, bars in groups if bars),
        text=text,  # type: ignore[arg-type]
        labels={},
        reference=reference,
    )
