"""What every form of the report shows, worked out once: numbers as text, columns, rows,
footnotes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qvae_trt.bench.results import REFERENCE, BenchResult, Cell, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qvae_trt.profiles import Part, Resolution

DESCRIPTIONS = {
    "pytorch": "stock diffusers (Conv3d)",
    "folded": "the exact 2D graph of a single frame, channels_last",
    "compiled": "the folded graph through torch.compile",
    "fused": "the folded graph on cuDNN and Triton kernels, nothing to build",
    "static": "a static engine of exactly this size",
    "profiles": "the engine with optimization profiles",
}
SERVICE_TITLES = {
    "latents_to_pil": "Latents to a PIL image on the host",
    "first_use": "First use of a size",
    "switch": "After a change of size",
}
SERVICE_TEXT = {
    "latents_to_pil": "Decode and post-processing, as a pipeline does them; medians. "
    "stock is diffusers' VaeImageProcessor, qvae is QvaeImageProcessor.",
    "first_use": "Loading the engine, making its context and the first decode of this size; once, "
    "in a process in which other sizes have run: the engine file was checked and is in the "
    "system's cache, and torch.compile finds this size in its own.",
    "switch": "The first decode after another size, against the next one of the same size; both "
    "sizes seen before.",
}
STEP_TITLES = {
    "decode_ms": "decode",
    "postprocess_ms": "post-process",
    "load_ms": "load",
    "first_run_ms": "first run",
    "after_switch_ms": "after the change",
    "steady_ms": "steady",
}
MACHINE_TITLES = {
    "gpu": "GPU",
    "driver": "driver",
    "gpu_memory_bytes": "GPU memory",
    "compute_capability": "compute capability",
    "multiprocessors": "multiprocessors",
    "clock_sm_mhz": "SM clock before, MHz",
    "clock_sm_mhz_end": "SM clock after, MHz",
    "clock_sm_max_mhz": "SM clock at most, MHz",
    "clock_memory_mhz": "memory clock, MHz",
    "power_limit_w": "power limit, W",
    "temperature_c": "temperature before, °C",
    "temperature_c_end": "temperature after, °C",
    "cpu": "CPU",
    "cpu_count": "CPU cores",
    "torch_threads": "PyTorch threads",
    "memory_bytes": "memory",
    "os": "system",
    "arch": "architecture",
}
METHOD = (
    "Batch 1. Before timing, every path runs until it is warm; then the paths take turns, so that "
    "drift meets all alike, and inputs rotate among {inputs}. {clock} Latency is the median; p10 "
    "and p90 are its spread. Speed-up is PyTorch's median over the path's, in the same run. The "
    "floor is the folded graph's multiply-adds at the rate of a {side}³ {dtype} matrix product "
    "measured on the same device ({tflops} TFLOP/s). Memory is the path's own weights and the most "
    "that one call takes beyond them: activations or engine scratch, and the output."
)
CLOCKS = {
    "cuda": "Times are between two CUDA events, from an idle device to an idle device.",
    "cpu": "Times are the host's.",
}


def ms(value: float | None) -> str:
    """Milliseconds with three or four digits that mean something."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}×" if value >= 100 else f"{value:.2f}×"


def size(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def share(value: float | None) -> str:
    return (
        "–"
        if value is None
        else f"{value * 100:.0f} %"
        if value >= 0.01
        else f"{value * 100:.2g} %"
    )


def legend(result: BenchResult) -> str:
    """What each column is."""
    known = [f"{path}: {DESCRIPTIONS[path]}" for path in result.paths if path in DESCRIPTIONS]
    return f"{'; '.join(known)}." if known else ""


def title(result: BenchResult) -> str:
    return f"Qwen-Image VAE latency on {result.runs[0].place}"


def subtitle(result: BenchResult) -> str:
    """Model, precision, libraries, day."""
    run = result.runs[0]
    versions: dict[str, str] = {}
    for one in result.runs:
        versions |= {
            name: one.versions[name] for name in ("tensorrt", "torch") if name in one.versions
        }
    flavours = engine_flavours(result)
    libraries = [f"PyTorch {versions['torch']}"] if "torch" in versions else []
    return ", ".join(
        [
            f"model {run.model}",
            f"PyTorch in {run.precision}",
            *flavours,
            *libraries,
            run.created[:10],
        ]
    )


def engine_flavours(result: BenchResult) -> list[str]:
    """The libraries that the engines ran in, from the cells that were measured."""
    found = [
        f"{cell.detail['flavour']} {cell.detail.get('engine_precision', '')}".strip()
        for cell in result.cells
        if cell.timing is not None and cell.detail.get("flavour")
    ]
    return list(dict.fromkeys(found))


@dataclass(slots=True)
class Footnotes:
    """Numbers for reasons; the same reason gets the same number."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell as text. `note` is a footnote's number, 0 for none."""

    latency: str
    speedup: str
    ratio: float | None
    fastest: bool
    note: int
    cell: Cell | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartTable:
    """One part's latencies: `paths` are the columns that have a measurement, `absent` the others
    and why.
    """

    part: Part
    paths: tuple[str, ...]
    rows: tuple[tuple[Resolution, tuple[Entry, ...]], ...]
    means: tuple[tuple[float, int] | None, ...]
    absent: tuple[tuple[str, str], ...]


def part_table(result: BenchResult, part: Part, notes: Footnotes) -> PartTable:
    cells = [cell for cell in result.cells if cell.part == part]
    shown = tuple(
        path
        for path in result.paths
        if any(cell.path == path and cell.timing is not None for cell in cells)
    )
    rows = []
    for resolution in result.resolutions:
        fastest = result.fastest(part, resolution)
        entries = []
        for path in shown:
            cell = result.cell(part, resolution, path)
            ratio = None if cell is None or path == REFERENCE else result.speedup(cell)
            reason = "; ".join(cell.notes) if cell is not None else ""
            entries.append(
                Entry(
                    latency=ms(cell.timing.median_ms if cell and cell.timing else None),
                    speedup="" if ratio is None else times(ratio),
                    ratio=ratio,
                    fastest=path == fastest,
                    note=notes.number(reason) if reason else 0,
                    cell=cell,
                )
            )
        if any(entry.cell is not None for entry in entries):
            rows.append((resolution, tuple(entries)))
    return PartTable(
        part=part,
        paths=shown,
        rows=tuple(rows),
        means=tuple(
            None if path == REFERENCE else result.mean_speedup(part, path) for path in shown
        ),
        absent=tuple(
            (path, _absence(cells, path))
            for path in result.paths
            if path not in shown and any(cell.path == path for cell in cells)
        ),
    )


def _absence(cells: Sequence[Cell], path: str) -> str:
    reasons = list(
        dict.fromkeys(note for cell in cells if cell.path == path for note in cell.notes)
    )
    if not reasons:
        return "no reason recorded"
    return (
        reasons[0] if len(reasons) == 1 else f"{reasons[0]} (and {len(reasons) - 1} more like it)"
    )


def mean_text(mean: tuple[float, int] | None) -> str:
    if mean is None:
        return ""
    ratio, count = mean
    return f"{times(ratio)} ({count} {'size' if count == 1 else 'sizes'})"


DETAIL_HEAD = (
    "size",
    "path",
    "median",
    "p10",
    "p90",
    "min",
    "runs",
    "first call",
    "memory",
    "of the floor",
)


def detail_rows(result: BenchResult, part: Part) -> list[tuple[str, ...]]:
    """Spread, first call, memory and share of the floor of every measured cell; milliseconds where
    no unit.
    """
    rows: list[tuple[str, ...]] = []
    for resolution in result.resolutions:
        for path in result.paths:
            cell = result.cell(part, resolution, path)
            if cell is None or cell.timing is None:
                continue
            first = cell.detail.get("first_ms")
            rows.append(
                (
                    str(resolution),
                    path,
                    ms(cell.timing.median_ms),
                    ms(cell.timing.p10_ms),
                    ms(cell.timing.p90_ms),
                    ms(cell.timing.min_ms),
                    str(cell.timing.runs),
                    ms(float(first)) if isinstance(first, int | float) else "–",
                    size(cell.peak_bytes),
                    share(result.floor_share(cell)),
                )
            )
    return rows


def service_kinds(result: BenchResult) -> list[str]:
    found = dict.fromkeys(row.kind for row in result.service)
    known = [kind for kind in SERVICE_TITLES if kind in found]
    return [*known, *(kind for kind in found if kind not in SERVICE_TITLES)]


def service_table(
    result: BenchResult, kind: str, notes: Footnotes
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of one kind of service measurement. An empty row has its footnote as `[n]`."""
    # Why a path is missing altogether is told beside the latencies.
    served = {row.path for row in result.service if row.timing is not None}
    rows = [row for row in result.service if row.kind == kind and row.path in served]
    seen = dict.fromkeys(step for row in rows for step in row.steps)
    steps = [step for step in STEP_TITLES if step in seen]
    steps += [step for step in seen if step not in STEP_TITLES]
    head = ["size", "path"]
    if any(row.previous for row in rows):
        head.insert(1, "after")
    if any(row.processor for row in rows) and kind == "latents_to_pil":
        head.append("processor")
    total = kind != "switch"
    head += [*(["total"] if total else []), *(STEP_TITLES.get(step, step) for step in steps)]
    body = []
    for row in rows:
        line = [str(row.resolution), row.path]
        if "after" in head:
            line.insert(1, str(row.previous or "–"))
        if "processor" in head:
            line.append(row.processor or "–")
        empty = f"– [{notes.number('; '.join(row.notes))}]" if row.notes else "–"
        if total:
            line.append(empty if row.timing is None else ms(row.timing.median_ms))
        filled = [ms(row.steps[step]) if step in row.steps else "–" for step in steps]
        if not total and row.timing is None and filled:
            filled[0] = empty
        body.append((*line, *filled))
    return tuple(head), body


def machine_rows(run: Run) -> list[tuple[str, str]]:
    """Facts of the machine and the versions, in a fixed order; unknown facts last."""
    rows = []
    for name in (*MACHINE_TITLES, *(name for name in run.machine if name not in MACHINE_TITLES)):
        value = run.machine.get(name)
        if value is None or name == "gpu_memory_mib":
            continue
        shown = (
            size(float(value)) if name.endswith("_bytes") and not isinstance(value, str) else value
        )
        rows.append((MACHINE_TITLES.get(name, name), str(shown)))
    rows += [(name, version) for name, version in run.versions.items()]
    rows += [
        ("model", run.model),
        ("weights sha256", run.weights_sha256[:16]),
        ("precision of PyTorch", run.precision),
    ]
    if run.matmul is not None:
        rows.append(("matrix product", f"{float(run.matmul.get('tflops') or 0):.4g} TFLOP/s"))
    rows += [("measured", run.created), ("command", run.command or "–")]
    return rows


def method(result: BenchResult) -> str:
    """How the figures were taken, in words, with the numbers of the first run."""
    run = result.runs[0]
    matmul = run.matmul or {}
    return METHOD.format(
        inputs=f"{run.settings.get('inputs', 'several')} sets",
        clock=CLOCKS.get(run.device, ""),
        side=matmul.get("side", "–"),
        dtype=matmul.get("dtype", ""),
        tflops=f"{float(matmul.get('tflops') or 0):.4g}",
    )


def remarks(result: BenchResult) -> list[str]:
    """What a reader must know before the figures: CPU, unfinished, ties that are off."""
    from qvae_trt.bench.compare import TIE_TOLERANCE

    found = list(dict.fromkeys(note for run in result.runs for note in run.notes))
    if not result.complete:
        found.insert(0, "The bench ended before it was done: what was not measured is missing.")
    if len(result.runs) > 1:
        merged = f"Merged from {len(result.runs)} runs on this machine"
        ratios = [tie.ratio for tie in result.ties]
        if not ratios:
            found.append(f"{merged} with no {REFERENCE} cell in common to tie them.")
            return found
        found.append(
            f"{merged}; {REFERENCE} in the later ones was {min(ratios):.3f} to {max(ratios):.3f} "
            f"times the first, over {len(ratios)} cells."
        )
        if any(abs(ratio - 1) > TIE_TOLERANCE for ratio in ratios):
            found.append(
                f"Some of these are off by more than {TIE_TOLERANCE:.0%}: across the runs compare "
                "speed-ups, not milliseconds."
            )
    return found


def labels(results: Sequence[BenchResult]) -> list[str]:
    """A short name for each of several results: what tells them apart, machine first."""
    options = []
    for result in results:
        run = result.runs[0]
        flavours = " + ".join(engine_flavours(result))
        torch = run.versions.get("torch", "")
        options.append(
            (
                run.place,
                f"{run.place}, {flavours}" if flavours else run.place,
                f"{run.place}, {flavours or 'PyTorch ' + torch}, {run.created[:10]}",
            )
        )
    for level in range(3):
        names = [option[level] for option in options]
        if len(set(names)) == len(names):
            return names
    return [f"{option[2]} (#{index + 1})" for index, option in enumerate(options)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """One cell that several results have: their medians, None where a result has none."""

    part: Part
    resolution: Resolution
    path: str
    medians: tuple[float | None, ...]

    @property
    def ratios(self) -> tuple[float | None, ...]:
        """The first result's median over each one's: above 1 is faster than the first."""
        first = self.medians[0]
        return tuple(None if not m or first is None else first / m for m in self.medians)


def contrasts(results: Sequence[BenchResult]) -> list[Contrast]:
    """Cells measured in at least two of the results, by part, path, then size."""
    found = []
    parts = [part for part in ("decoder", "encoder") if any(part in r.parts for r in results)]
    resolutions = dict.fromkeys(size for result in results for size in result.resolutions)
    paths = dict.fromkeys(path for result in results for path in result.paths)
    for part in parts:
        for path in paths:
            for resolution in resolutions:
                cells = [result.cell(part, resolution, path) for result in results]  # type: ignore[arg-type]
                medians = tuple(c.timing.median_ms if c and c.timing else None for c in cells)
                if sum(m is not None for m in medians) > 1:
                    found.append(
                        Contrast(part=part, resolution=resolution, path=path, medians=medians)  # type: ignore[arg-type]
                    )
    return found
