"""A block of several lines, mostly a table: `block` gives the text for a key."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from figures.lines import build
from figures.measured import HOSTS, Measured, MissingError
from figures.pictures import picture
from figures.tables import table as markdown_table
from figures.words import WORDS
from qvae_trt.bench.results import REFERENCE
from qvae_trt.profiles import PARTS, Part, Resolution, load_profiles, load_static_sizes
from qvae_trt.verify.bounds import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from qvae_trt.bench.results import BenchResult, Cell

    Words = dict[str, str]

# The size that the table of all paths is about.
_BEST_AT = Resolution(1328, 1328)
_BEST_PARTS: tuple[Part, ...] = ("decoder", "encoder")

# What footprint.py measures of a folder with all engines.
CASES = (
    "one static pair",
    "all static pairs",
    "nine profiles, 1024x1024",
    "nine profiles, at every opt",
)


def block(measured: Measured, key: str, language: str, page: Path) -> str:
    """The text between the markers, or the words for what was not measured."""
    measured, key = measured.named(key)
    kind, _, name = key.partition(":")
    words = WORDS[language]
    try:
        if kind == "picture":
            return picture(measured, name, words, page)
        return _BLOCKS[kind](measured, words, *([name] if name else []))
    except MissingError:
        return words.get(f"no {kind}", f"*{words['missing']}*")


def _sizes(_: Measured, words: Words) -> str:
    rows = [(aspect, str(size)) for aspect, size in load_static_sizes().items()]
    return _markdown((words["aspect"], words["size"]), rows)


def _profiles(_: Measured, words: Words) -> str:
    rows = [(str(i), str(p.min), str(p.opt), str(p.max)) for i, p in enumerate(load_profiles())]
    return _markdown((words["profile"], "min", "opt", "max"), rows)


def _bounds(_: Measured, words: Words) -> str:
    rows = [
        (
            precision,
            output,
            f"{b.psnr_db:g}",
            f"{b.cosine:.8g}",
            f"{b.relative_l2:g}",
            f"{b.max_abs:g}" + ("" if output == "images" else f" {words['of range']}"),
            f"{b.bf16_ratio:g}",
        )
        for precision, outputs in BOUNDS.items()
        for output, b in outputs.items()
    ]
    head = (words["precision"], words["output"], "PSNR ≥, dB", "cosine ≥", "rel. L2 ≤",
            "max abs ≤", "vs bf16 ≤")  # fmt: skip
    return _markdown(head, rows)


def _gain(measured: Measured, words: Words) -> str:
    sets = measured.sets
    rows = []
    for path in measured.paths:
        means = [one.mean_speedup(part, path) for one in sets.values() for part in PARTS]
        if path != "pytorch" and any(means):
            rows.append([f"`{path}`", *("–" if m is None else f"{m[0]:.2f}×" for m in means)])
    named = [_named(name, one, words) for name, one in sets.items()]
    return _markdown(
        (words["path"], *(f"{part}, {name}" for name in named for part in PARTS)), rows
    )


def _named(name: str, table: BenchResult, words: Words) -> str:
    """The size where there is one, else how many there are."""
    sizes = table.resolutions
    return str(sizes[0]) if len(sizes) == 1 else f"{words[name]} ({len(sizes)})"


def _machine(measured: Measured, words: Words) -> str:
    """One fact per line; where the runs differ in one, each value once."""
    named = ("gpu", "driver", "cuda", "torch", "triton", "tensorrt", "diffusers", "python")
    facts: dict[str, dict[str, None]] = {}
    for run in measured.table.runs:
        known = {**run.machine, **run.versions}
        told = {name: str(known[name]) for name in named if name in known}
        told |= {"model": run.model, "date": run.created[:10]}
        for name, value in told.items():
            facts.setdefault(name, {})[value] = None
    rates = sorted(float(run.matmul["tflops"]) for run in measured.table.runs if run.matmul)
    if rates:
        ends = dict.fromkeys(f"{rate:.0f}" for rate in (rates[0], rates[-1]))
        facts["matmul"] = {f"{' – '.join(ends)} TFLOP/s": None}
    order = (*named, "model", "date", "matmul")
    return _markdown(
        (words["fact"], words["value"]),
        [(name, ", ".join(sorted(facts[name]))) for name in order if name in facts],
    )


def _latency(measured: Measured, words: Words, part: Part) -> str:
    paths = measured.paths
    rows = []
    for table in measured.sets.values():
        rows += [_latencies(table, part, size, paths) for size in table.resolutions]
        if len(table.resolutions) > 1:
            means = [table.mean_speedup(part, path) for path in paths]
            told = ["–" if m is None or m[0] == 1 else f"{m[0]:.2f}×" for m in means]
            rows.append([f"*{words['mean']}*", *told])
    return _markdown((f"{part}, ms", *paths), rows)


def _latencies(table: BenchResult, part: Part, size: Resolution, paths: list[str]) -> list[str]:
    row = [str(size)]
    for path in paths:
        cell = table.cell(part, size, path)
        if cell is None or cell.timing is None:
            row.append("–")
            continue
        text = f"{cell.timing.median_ms:.1f}"
        if table.fastest(part, size) == path:
            text = f"**{text}**"
        ratio = table.speedup(cell)
        row.append(text if ratio is None or path == "pytorch" else f"{text} ({ratio:.2f}×)")
    return row


def _best(measured: Measured, words: Words) -> str:
    """Each path on the first machine that has it: one size, and the mean over the static sizes."""
    rows: dict[str, list[str]] = {}
    for one in map(measured.of, HOSTS):
        for path in one.paths if one.result else ():
            cells = [one.table.cell(part, _BEST_AT, path) for part in _BEST_PARTS]
            if path in rows or not any(cell and cell.timing for cell in cells):
                continue
            gpu = str(one.table.runs[0].machine["gpu"]).removeprefix("NVIDIA ").split()[0]
            rows[path] = [f"`{path}`", gpu, *(_timed(one.table, cell) for cell in cells)]
            static = one.sets.get("static", one.table)
            several = len(static.resolutions) > 1 and path != "pytorch"
            means = [static.mean_speedup(part, path) if several else None for part in _BEST_PARTS]
            rows[path] += _dashed(means, lambda mean: f"{mean[0]:.2f}×")
    if not rows:
        raise MissingError
    head = [words[name] for name in ("path", "card", "decode", "encode", "decodes", "encodes")]
    return _markdown([text.format(_BEST_AT) for text in head], rows.values())


def _timed(table: BenchResult, cell: Cell | None) -> str:
    if cell is None or cell.timing is None:
        return "–"
    ratio = table.speedup(cell)
    text = f"{cell.timing.median_ms:.1f} ms"
    return text if ratio is None or ratio == 1 else f"{text} ({ratio:.2f}×)"


def _beside(measured: Measured, words: Words, part: Part) -> str:
    """What LightX2V published, and what was measured here at the same size."""
    table = measured.table
    rows = []
    for row in measured.beside:
        size, mode = Resolution.parse(row["size"]), row["mode"]
        fastest = table.fastest(part, size)
        here = [
            "–" if cell is None or cell.timing is None else f"{cell.timing.median_ms:.1f}"
            for path in ("pytorch", mode, fastest or "")
            for cell in [table.cell(part, size, path)]
        ]
        if fastest is not None:
            here[-1] += f" (`{fastest}`)"
        theirs = [f"{row[part][name]:.1f}" for name in ("pytorch_ms", "tensorrt_ms")]
        rows.append([str(size), mode, *theirs, *here])
    named = ("its PyTorch", "its TensorRT", "PyTorch here", "engine here", "fastest here")
    head = (f"{part}, ms", words["engine"], *(words[name] for name in named))
    return _markdown(head, rows)


def _service(measured: Measured, words: Words) -> str:
    table = measured.table
    rows = []
    for path in table.paths:
        for processor in ("stock", "qvae"):
            found = [
                row
                for row in table.service
                if (row.kind, row.path, row.processor) == ("latents_to_pil", path, processor)
                and row.timing is not None
            ]
            if found:
                largest = max(found, key=lambda row: row.resolution.pixels)
                rows.append([path, words[processor], f"{largest.timing.median_ms:.1f}"])
    if not rows:
        raise MissingError
    return _markdown([words[name] for name in ("path", "processor", "pil")], rows)


def _modes(measured: Measured, words: Words) -> str:
    """Static engines beside those with profiles, at the static sizes."""
    static = measured.sets.get("static")
    modes = ("static", "profiles")
    if static is not None:  # means over the sizes of these two, whatever else was measured there
        cells = tuple(cell for cell in static.cells if cell.path in (*modes, REFERENCE))
        static = replace(static, cells=cells)
    gains, builds = [], []
    for part in ("decoder", "encoder"):
        means = [None if static is None else static.mean_speedup(part, mode) for mode in modes]
        gains.append([words[f"speed-up {part}"], *_dashed(means, lambda m: f"{m[0]:.2f}×")])
        took: list[str | None] = []
        for mode in modes:
            try:
                took.append(build(measured, part, mode))
            except MissingError:
                took.append(None)
        builds.append([words[f"build {part}"], *_dashed(took, str)])
    rows = [*gains, *builds]
    if all(row[-1] == "–" for row in rows):
        raise MissingError
    return _markdown((words["where"], *modes), rows)


def _dashed(values: Iterable[Any], form: Callable[[Any], str]) -> list[str]:
    return ["–" if value is None else form(value) for value in values]


def _memory(measured: Measured, words: Words) -> str:
    """The cases measured, and below them the names of those that were not."""
    rows = [
        [
            words.get(row["case"], row["case"]),
            *(
                f"{row[name] / 2**30:.2f}"
                for name in ("engine_bytes", "scratch_bytes", "device_bytes")
            ),
            f"{max(map(max, row['first_use_ms'].values())):.0f}",
            f"{max(map(max, row['switch_ms'].values())):.2f}" if row["switch_ms"] else "–",
        ]
        for row in measured.footprint
    ]
    if not rows:
        raise MissingError
    head = ("engines", "files", "scratch", "device", "first", "switch")
    text = _markdown([words[name] for name in head], rows)
    known = {row["case"] for row in measured.footprint}
    left = [words.get(case, case) for case in CASES if case not in known]
    return f"{text}\n\n{words['cases left'].format(words['and'].join(left))}" if left else text


def _planned(measured: Measured, words: Words) -> str:
    """The scratch that TensorRT-RTX plans: static sizes, then profile after profile."""
    found: dict[str, dict[str, int]] = {}
    for engine in measured.planned:
        for index, profile in enumerate(engine["profiles"]):
            static = engine["mode"] == "static"
            name = f"profile {index}, {words['up to']} {profile['max']}"
            row = found.setdefault(profile["opt"] if static else name, {})
            row[engine["part"]] = profile["scratch_bytes"]
    rows = [
        [name, *_dashed(map(row.get, PARTS), lambda size: f"{size / 2**30:.2f}")]
        for name, row in found.items()
    ]
    return _markdown((words["engine"], *(f"{part}, GiB" for part in PARTS)), rows)


def _parity(measured: Measured, words: Words) -> str:
    if not measured.parity:
        raise MissingError
    rows = []
    for output in ("images", "mean", "logvar"):
        for mode in ("static", "profiles"):
            found = [r for r in measured.parity if (r["output"], r["mode"]) == (output, mode)]
            if found:
                rows.append(
                    [
                        mode,
                        output,
                        str(len(found)),
                        f"{min(_number(r['psnr_db']) for r in found):.1f}",
                        f"{max(_number(r['relative_l2']) for r in found):.1e}",
                        f"{max(_number(r['max_abs']) for r in found):.1e}",
                        f"{max(_number(r['bf16_ratio']) for r in found):.2f}",
                    ]
                )
    head = ("engine", "output", "rows", "least", "l2", "abs", "bf16")
    return _markdown([words[name] for name in head], rows)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


_FIGURE = re.compile(r"\*{0,2}[\d–]")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what follows the last column of words is set to the right, the first one never."""
    rows = list(rows)
    columns = list(enumerate(zip(*rows, strict=True)))[1:]
    words = [place for place, column in columns if not all(map(_FIGURE.match, column))]
    return "\n".join(markdown_table(head, rows, words=max(words, default=0) + 1))


_BLOCKS: dict[str, Callable[..., str]] = {
    "sizes": _sizes,
    "profiles": _profiles,
    "bounds": _bounds,
    "gain": _gain,
    "machine": _machine,
    "latency": _latency,
    "service": _service,
    "modes": _modes,
    "memory": _memory,
    "parity": _parity,
    "planned": _planned,
    "beside": _beside,
    "best": _best,
}
