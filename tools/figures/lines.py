"""One figure in a line: `line` gives the text for a key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from figures.measured import Measured, MissingError
from figures.words import WORDS
from qvae_trt.profiles import Part, Resolution

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvae_trt.bench.results import Cell, Timing

_FORMATS: dict[str, Callable[[Any], str]] = {
    "ms": lambda v: f"{v:.1f} ms",
    "s": lambda v: f"{v / 1000:.1f} s",
    "gib": lambda v: f"{v / 2**30:.2f} GiB",
    "mib": lambda v: f"{v / 2**20:.0f} MiB",
    "int": lambda v: f"{v:,}",
    "text": str,
}


def line(measured: Measured, key: str, language: str) -> str:
    """The figure, or the words for one that was not measured."""
    measured, key = measured.named(key)
    kind, rest = key.split(":", 1)
    try:
        if kind == "json":
            return _json(measured, *rest.rsplit(":", 2))
        made: dict[str, Callable[..., str]] = {
            "build": build,
            "range": _range,
            "cell": _cell,
            "first": _first,
            "graph": _graph,
            "post": _post,
            "share": _share,
        }
        return made[kind](measured, *rest.split(":"))
    except MissingError:
        return WORDS[language]["missing"]


def build(measured: Measured, part: str, mode: str) -> str:
    found = [
        row["seconds"] for row in measured.builds if (row["part"], row["mode"]) == (part, mode)
    ]
    return _span(found, "{:.0f} s")


def _range(measured: Measured, part: str, path: str) -> str:
    table = measured.table
    cells = [c for c in table.cells if c.part == part and c.path == path]
    return _span([r for c in cells if (r := table.speedup(c)) is not None], "{:.2f}×")


def _cell(measured: Measured, part: Part, path: str, size: str, what: str) -> str:
    cell, timing = _timed_cell(measured, part, path, size)
    if what == "median":
        return f"{timing.median_ms:.1f} ms"
    if what == "first" and "first_ms" in cell.detail:
        return f"{float(cell.detail['first_ms']):,.0f} ms"
    if what == "memory" and cell.peak_bytes is not None:
        return _FORMATS["gib"](cell.peak_bytes - (cell.weights_bytes or 0))
    raise MissingError


def _timed_cell(measured: Measured, part: Part, path: str, size: str) -> tuple[Cell, Timing]:
    cell = measured.table.cell(part, Resolution.parse(size), path)
    if cell is None or cell.timing is None:
        raise MissingError
    return cell, cell.timing


def _first(measured: Measured, state: str, what: str) -> str:
    found = measured.first_use(state)
    if what == "size":
        return f"{max(row['cost_ms'] for row in found.values() if _has(row, 'cost_ms')):.0f} ms"
    begins = {"process": "first decoder", "offload": "after offload"}[what]
    return f"{next(value for name, value in found.items() if name.startswith(begins)):,.0f} ms"


def _graph(measured: Measured, part: str, size: str, what: str) -> str:
    row = measured.first_use("warm").get(f"{part} {size}")
    if row is None:
        raise MissingError
    return f"{row[f'{what}_ms']:.1f} ms"


def _has(row: object, name: str) -> bool:
    return isinstance(row, dict) and name in row


def _span(found: list[float], form: str) -> str:
    """The least to the largest; once where both read the same."""
    if not found:
        raise MissingError
    least, most = form.format(min(found)), form.format(max(found))
    return least if least == most else f"{least} – {most}"


def _post(measured: Measured, processor: str, path: str, size: str) -> str:
    """Of one run that timed both processors: two figures of two machines are no comparison."""
    resolution = Resolution.parse(size)
    runs: dict[int, dict[str | None, float]] = {}
    for row in measured.table.service:
        if (row.path, row.resolution) == (path, resolution) and "postprocess_ms" in row.steps:
            runs.setdefault(row.run, {})[row.processor] = row.steps["postprocess_ms"]
    for found in runs.values():
        if {"stock", "qvae"} <= set(found):
            return _FORMATS["ms"](found[processor])
    raise MissingError


def _share(measured: Measured, path: str, steps: str) -> str:
    """Of a decode in a generation whose other times are those of `peers/sglang.json`."""
    peer = measured.read("peers/sglang.json")
    _, timing = _timed_cell(measured, "decoder", path, peer["size"])
    rest = peer["text_encoding_ms"] + int(steps) * peer["denoise_step_ms"]
    return f"{timing.median_ms / (rest + timing.median_ms):.1%}"


def _json(measured: Measured, file: str, path: str, form: str) -> str:
    value = measured.read(file)
    steps = re.findall(r"([\w-]+)(?:\[(?:name=([\w-]+)|(\d+))\])?", path)
    for name, chosen, index in steps:
        if not isinstance(value, dict) or name not in value:
            raise MissingError
        value = value[name]
        if chosen:
            value = next((item for item in value if item.get("name") == chosen), None)
        elif index:
            value = dict(enumerate(value)).get(int(index))
    if value is None:
        raise MissingError
    return _FORMATS[form](value)
