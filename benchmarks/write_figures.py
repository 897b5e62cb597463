"""Fill the figures of README.md and docs/ from `benchmarks/**.json`, so that none is ever typed.

    write_figures.py             writes what is between the markers, and the charts
    write_figures.py --check     exit 1 where that would change a file
    write_figures.py --terminal  draws docs/images/terminal-*.svg anew
    write_figures.py --report    photographs the page that `qvae report` makes; needs Chromium

In a line: `<!-- f KEY -->what was written<!-- /f -->`. Over several lines: `<!-- block KEY -->`,
the block, `<!-- /block -->`. Where a measurement is missing, the words for that are written.

Keys of a line:
    ms:PART:SIZE:PATH        median            speedup:PART:SIZE:PATH   against PyTorch as shipped
    mean:PART:PATH[:SET]     mean speed-up     range:PART:PATH          its least and largest
    first:PATH  switch:PATH  what a first use and a change of size add, at most
    pil:PATH:PROCESSOR       latents to PIL    post:PROCESSOR           of it the post-processing
    fact:NAME                gpu, driver, …
    build:PART:MODE          seconds that building one engine took, least to largest
    json:FILE:A.B[name=x].C[0]:FORMAT          any value; FORMAT is ms, gib, mib, int, x or text
Keys of a block:
    sizes  profiles  bounds  gain  machine  latency:PART  service  memory  parity  picture:NAME
A SET is `static`, the sizes that have static engines, or `others`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Any

from qvae_trt.bench import BenchResult, Cell, load, merge
from qvae_trt.errors import BenchError
from qvae_trt.profiles import PARTS, Part, Resolution, load_profiles, load_static_sizes
from qvae_trt.verify.bounds import BOUNDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ("latency", "speedup", "memory")
# These are of the static sizes; of all others there is one.
OTHERS = "latency-others"
EVERY_OPT = "nine profiles, at every opt"
BUILDS = Path("qvae_trt/data/builds.json")
_INLINE = re.compile(r"(<!-- f (\S+) -->)(.*?)(<!-- /f -->)")
_BLOCK = re.compile(r"(<!-- block (\S+) -->\n)(.*?)(\n?<!-- /block -->)", re.DOTALL)

_WORDS = {
    "en": {
        "missing": "not measured yet",
        "aspect": "aspect", "size": "size", "profile": "profile", "fact": "fact", "value": "value",
        "precision": "precision", "output": "output", "mean": "mean", "engine": "engine",
        "rows": "comparisons", "least": "least PSNR, dB", "l2": "largest relative L2",
        "abs": "largest difference", "bf16": "largest error over bf16's",
        "images": "images", "moments": "moments", "of range": "of the range",
        "path": "path", "sizes": "sizes", "first": "first use adds, ms",
        "switch": "a change of size adds, ms",
        "pil": "latents to PIL, ms", "processor": "post-processing",
        "engines": "engines", "files": "engine files, GiB", "scratch": "scratch, GiB",
        "device": "GPU memory in all, GiB", "stock": "diffusers'", "qvae": "QvaeImageProcessor",
        "static": "static sizes", "others": "other sizes",
        "latency": "Latency by size, one bar a path",
        OTHERS: "Latency at other sizes, one bar a path",
        "speedup": "Speed-up over PyTorch as diffusers ships it",
        "memory": "Memory by size",
    },
    "zh": {
        "missing": "尚未测量",
        "aspect": "宽高比", "size": "尺寸", "profile": "profile", "fact": "项目", "value": "值",
        "precision": "精度", "output": "输出", "mean": "平均", "engine": "引擎",
        "rows": "比较次数", "least": "最低 PSNR（dB）", "l2": "最大相对 L2",
        "abs": "最大差值", "bf16": "相对 bf16 误差的最大比值",
        "images": "图像", "moments": "矩", "of range": "（占取值范围）",
        "path": "路径", "sizes": "尺寸数", "first": "首次使用增加（ms）",
        "switch": "切换尺寸增加（ms）",
        "pil": "latents 到 PIL（ms）", "processor": "后处理",
        "engines": "引擎", "files": "引擎文件（GiB）", "scratch": "scratch（GiB）",
        "device": "显存合计（GiB）", "one static pair": "一对静态引擎",
        "all static pairs": "全部静态引擎对",
        "nine profiles, 1024x1024": "九 profile，1024x1024",
        EVERY_OPT: "九 profile，每个 opt", "stock": "diffusers 自带", "qvae": "QvaeImageProcessor",
        "static": "静态尺寸", "others": "其他尺寸", OTHERS: "其他尺寸的延迟，每条路径一根柱",
        "latency": "各尺寸的延迟，每条路径一根柱",
        "speedup": "相对 diffusers 原版 PyTorch 的加速比", "memory": "各尺寸的显存",
    },
}  # fmt: skip


class MissingError(Exception):
    """There is no such measurement."""


class Figures:
    """What can be said, from the JSON files under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def result(self) -> BenchResult | None:
        """The H200's latencies: all results of one machine and model as one table, the newest
        first, so that of two measurements of one thing it is the newer that counts.
        """
        found = []
        for path in sorted((self.folder / "h200").rglob("*.json")):
            try:
                data = json.loads(path.read_bytes())
                if isinstance(data, dict) and data.get("schema") == "qvae/latency":
                    found.append(load(path))
            except (ValueError, BenchError) as error:
                print(f"{path}: left out: {error}", file=sys.stderr)
        tables: list[BenchResult] = []
        for result in sorted(found, key=lambda one: one.runs[0].created, reverse=True):
            for index, table in enumerate(tables):
                with suppress(BenchError):  # another machine, driver or model
                    tables[index] = merge([table, result])
                    break
            else:
                tables.append(result)
        tables.sort(key=lambda table: len(_timed(table)), reverse=True)
        for table in tables[1:]:
            name = f"{table.runs[0].place}, driver {table.runs[0].machine.get('driver')}"
            print(f"left out: {len(_timed(table))} latencies of {name}", file=sys.stderr)
        return _in_order(tables[0]) if tables else None

    def _set(self, name: str) -> BenchResult:
        """The table's rows of the static sizes, or of all others."""
        table = self._table()
        static = set(load_static_sizes().values())
        kept = [c for c in table.cells if (c.resolution in static) is (name == "static")]
        if not kept:
            raise MissingError
        return replace(table, cells=tuple(kept), service=())

    @property
    def _sets(self) -> dict[str, BenchResult]:
        found = {}
        for name in ("static", "others"):
            with suppress(MissingError):
                found[name] = self._set(name)
        return found

    @cached_property
    def parity(self) -> list[dict[str, Any]]:
        """Every row that ran on the H200, of every parity report there."""
        reports = [data for data in self._others if "reference_proof" in data]
        return [row for data in reports for row in data["rows"] if "psnr_db" in row]

    @cached_property
    def footprint(self) -> list[dict[str, Any]]:
        """The rows that tests/gpu/footprint.py wrote, of the full-size VAE alone."""
        full = [data for data in self._others if data.get("model") == "random:full"]
        rows = [row for data in full for row in data.get("rows", [])]
        return [row for row in rows if "case" in row and "device_bytes" in row]

    @cached_property
    def _others(self) -> list[dict[str, Any]]:
        found = [json.loads(p.read_bytes()) for p in sorted((self.folder / "h200").rglob("*.json"))]
        return [data for data in found if isinstance(data, dict)]

    @cached_property
    def builds(self) -> list[dict[str, Any]]:
        """What building each engine took, by the sidecars; of several of one kind the latest."""
        latest: dict[tuple[str, ...], dict[str, Any]] = {}
        for data in self._others:
            if "build_seconds" in data and "key" in data:
                key = data["key"]
                size = key["profiles"][0]["opt"] if key["mode"] == "static" else None
                row = {name: key[name] for name in ("flavour", "flavour_version", "gpu")}
                row |= {"part": key["part"], "mode": key["mode"], "size": size}
                kind = tuple(map(str, row.values()))
                row |= {"seconds": data["build_seconds"], "bytes": data["engine"]["bytes"]}
                if kind not in latest or latest[kind]["created"] < data["created"]:
                    latest[kind] = row | {"created": data["created"]}
        rows = [latest[kind] for kind in sorted(latest)]
        return [{k: v for k, v in row.items() if k != "created"} for row in rows]

    # --- one figure -----------------------------------------------------------------------------

    def line(self, key: str, words: dict[str, str]) -> str:
        kind, *rest = key.split(":", 1)
        try:
            if kind == "json":
                return self._json(rest[0])
            value: Callable[..., str] = getattr(self, f"_{kind}")
            return value(*rest[0].split(":"))
        except MissingError:
            return words["missing"]

    def _table(self) -> BenchResult:
        if self.result is None:
            raise MissingError
        return self.result

    def _ms(self, part: Part, size: str, path: str) -> str:
        cell = self._table().cell(part, Resolution.parse(size), path)
        if cell is None or cell.timing is None:
            raise MissingError
        return f"{cell.timing.median_ms:.1f} ms"

    def _speedup(self, part: Part, size: str, path: str) -> str:
        cell = self._table().cell(part, Resolution.parse(size), path)
        ratio = None if cell is None else self._table().speedup(cell)
        if ratio is None:
            raise MissingError
        return f"{ratio:.2f}×"

    def _ratios(self, part: str, path: str, of: str | None = None) -> list[float]:
        table = self._table() if of is None else self._set(of)
        cells = [c for c in table.cells if c.part == part and c.path == path]
        found = [ratio for cell in cells if (ratio := table.speedup(cell)) is not None]
        if not found:
            raise MissingError
        return found

    def _mean(self, part: str, path: str, of: str | None = None) -> str:
        found = self._ratios(part, path, of)
        return f"{sum(found) / len(found):.2f}×"

    def _range(self, part: str, path: str) -> str:
        found = self._ratios(part, path)
        return f"{min(found):.2f}× – {max(found):.2f}×"

    def _service(self, kind: str, path: str) -> list[Any]:
        rows = [
            row
            for row in self._table().service
            if (row.kind, row.path) == (kind, path) and row.timing is not None
        ]
        if not rows:
            raise MissingError
        return rows

    def _most(self, path: str, what: str) -> float:
        """The largest of a footprint's figures, over the sizes and both parts, in ms."""
        for row in self.footprint:
            if row["case"] == {"static": "all static pairs", "profiles": EVERY_OPT}.get(path):
                return max(0.0, *(ms for pair in row[what].values() for ms in pair))
        raise MissingError

    def _first(self, path: str) -> str:
        return f"{self._most(path, 'first_use_ms'):.0f} ms"

    def _switch(self, path: str) -> str:
        return f"{self._most(path, 'switch_ms'):.2f} ms"

    def _pil(self, path: str, processor: str) -> str:
        rows = self._service("latents_to_pil", path)
        found = [r for r in rows if r.processor == processor]
        if not found:
            raise MissingError
        largest = max(found, key=lambda row: row.resolution.pixels)
        return f"{largest.timing.median_ms:.1f} ms"

    def _post(self, processor: str) -> str:
        rows = [
            row
            for path in self._table().paths
            for row in self._table().service
            if row.path == path and row.processor == processor and "postprocess_ms" in row.steps
        ]
        if not rows:
            raise MissingError
        return f"{max(row.steps['postprocess_ms'] for row in rows):.1f} ms"

    def _fact(self, name: str) -> str:
        run = self._table().runs[0]
        versions = {k: v for one in self._table().runs for k, v in one.versions.items()}
        value = {"date": run.created[:10], "model": run.model, **run.machine, **versions}.get(name)
        if value is None:
            raise MissingError
        return str(value)

    def _json(self, key: str) -> str:
        file, path, form = key.rsplit(":", 2)
        source = self.folder / file
        if not source.is_file():
            raise MissingError
        value: Any = json.loads(source.read_bytes())
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
        return {
            "ms": lambda v: f"{v:.1f} ms",
            "gib": lambda v: f"{v / 2**30:.2f} GiB",
            "mib": lambda v: f"{v / 2**20:.0f} MiB",
            "int": lambda v: f"{v:,}",
            "x": lambda v: f"{v:.2f}×",
            "text": str,
        }[form](value)

    def _build(self, part: str, mode: str) -> str:
        found = [r["seconds"] for r in self.builds if (r["part"], r["mode"]) == (part, mode)]
        if not found:
            raise MissingError
        least, most = f"{min(found):.0f} s", f"{max(found):.0f} s"
        return least if least == most else f"{least} – {most}"

    # --- a block --------------------------------------------------------------------------------

    def block(self, key: str, words: dict[str, str], page: Path) -> str:
        kind, _, name = key.partition(":")
        try:
            if kind == "picture":
                return self._picture(name, words, page)
            make: Callable[..., str] = getattr(self, f"_block_{kind}")
            return make(words, *([name] if name else []))
        except MissingError:
            return f"*{words['missing']}*"

    def _picture(self, name: str, words: dict[str, str], page: Path) -> str:
        if name == OTHERS and name not in self.charts:
            return ""  # the table beside it says that nothing was measured there
        if name not in self.charts:
            raise MissingError
        images = os.path.relpath(ROOT / "docs" / "images", page.parent)
        return (
            f'<picture><source media="(max-width: 600px)" srcset="{images}/h200-{name}-narrow.svg">'
            f'<img alt="{words[name]}, {self._fact("gpu")}" src="{images}/h200-{name}.svg">'
            "</picture>"
        )

    @cached_property
    def charts(self) -> dict[str, str]:
        """The charts as SVG, by name: beside each other for a desk, and one below the other for a
        phone, where the wide ones would be too small to read.
        """
        if self.result is None:
            return {}
        from qvae_trt.report import charts, svg

        sets = self._sets
        table = sets.get("static", self.result)
        made = {name: getattr(charts, name)(table) for name in CHARTS}
        if len(sets) == 2:
            made[OTHERS] = charts.latency(sets["others"])
        drawn = {}
        for name, panels in made.items():
            if panels:
                columns = min(len(panels), 2)
                drawn[name] = svg.document(panels, width=480 * columns, columns=columns)
                drawn[f"{name}-narrow"] = svg.document(panels, width=360)
        return drawn

    def _block_sizes(self, words: dict[str, str]) -> str:
        rows = [(aspect, str(size)) for aspect, size in load_static_sizes().items()]
        return _markdown((words["aspect"], words["size"]), rows)

    def _block_profiles(self, words: dict[str, str]) -> str:
        rows = [(str(i), str(p.min), str(p.opt), str(p.max)) for i, p in enumerate(load_profiles())]
        return _markdown((words["profile"], "min", "opt", "max"), rows)

    def _block_bounds(self, words: dict[str, str]) -> str:
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

    def _block_gain(self, words: dict[str, str]) -> str:
        sets = self._sets
        rows = []
        for path in self._table().paths:
            means = [one.mean_speedup(part, path) for one in sets.values() for part in PARTS]
            if path != "pytorch" and any(means):
                rows.append([f"`{path}`", *("–" if m is None else f"{m[0]:.2f}×" for m in means)])
        counts = [f"{words[name]} ({len(one.resolutions)})" for name, one in sets.items()]
        return _markdown((words["path"], *(f"{p}, {c}" for c in counts for p in PARTS)), rows)

    def _block_machine(self, words: dict[str, str]) -> str:
        """A fact a line; where the runs differ in one, each value once."""
        runs = self._table().runs
        named = ("gpu", "driver", "cuda", "torch", "triton", "tensorrt", "diffusers", "python")
        facts: dict[str, dict[str, None]] = {}
        for run in runs:
            known = {**run.machine, **run.versions}
            told = {name: str(known[name]) for name in named if name in known}
            told |= {"model": run.model, "date": run.created[:10]}
            if run.matmul:
                told["matmul"] = f"{run.matmul['tflops']:.0f} TFLOP/s"
            for name, value in told.items():
                facts.setdefault(name, {})[value] = None
        order = (*named, "model", "date", "matmul")
        return _markdown(
            (words["fact"], words["value"]),
            [(name, ", ".join(sorted(facts[name]))) for name in order if name in facts],
        )

    def _block_latency(self, words: dict[str, str], part: Part) -> str:
        paths = self._table().paths
        rows = []
        for table in self._sets.values():
            rows += [self._latencies(table, part, size) for size in table.resolutions]
            means = [table.mean_speedup(part, path) for path in paths]
            told = ["–" if m is None or m[0] == 1 else f"{m[0]:.2f}×" for m in means]
            rows.append([f"*{words['mean']}*", *told])
        return _markdown((f"{part}, ms", *paths), rows)

    def _latencies(self, table: BenchResult, part: Part, size: Resolution) -> list[str]:
        row = [str(size)]
        for path in self._table().paths:
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

    def _block_service(self, words: dict[str, str]) -> str:
        rows = []
        for path in self._table().paths:
            for processor in ("stock", "qvae"):
                try:
                    total = self._pil(path, processor)
                except MissingError:
                    continue
                rows.append([path, words[processor], total.removesuffix(" ms")])
        if not rows:
            raise MissingError
        return _markdown([words[name] for name in ("path", "processor", "pil")], rows)

    def _block_memory(self, words: dict[str, str]) -> str:
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
            for row in self.footprint
        ]
        if not rows:
            raise MissingError
        head = ("engines", "files", "scratch", "device", "first", "switch")
        return _markdown([words[name] for name in head], rows)

    def _block_parity(self, words: dict[str, str]) -> str:
        if not self.parity:
            raise MissingError
        rows = []
        for output in ("images", "mean", "logvar"):
            for mode in ("static", "profiles"):
                found = [r for r in self.parity if (r["output"], r["mode"]) == (output, mode)]
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


def _timed(table: BenchResult) -> list[Any]:
    return [cell for cell in table.cells if cell.timing is not None]


def _in_order(table: BenchResult) -> BenchResult:
    """Static sizes first, then what profiles were tuned for, then the rest; as their files list
    them.
    """
    listed = [*load_static_sizes().values(), *(profile.opt for profile in load_profiles())]

    def place(cell: Cell) -> tuple[int, int]:
        size = cell.resolution
        return (listed.index(size), 0) if size in listed else (len(listed), size.pixels)

    return replace(table, cells=tuple(sorted(table.cells, key=place)))


_FIGURE = re.compile(r"\*{0,2}[\d–]")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns of figures are set to the right, the first one never."""
    rows = list(rows)
    columns = list(zip(*rows, strict=True))[1:]
    rules = ["---:" if all(map(_FIGURE.match, column)) else "---" for column in columns]
    lines = [head, ["---", *rules], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every page of the docs."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, page: Path, figures: Figures) -> str:
    """A page with its figures as they are now."""
    words = _WORDS["zh" if "zh" in page.parts else "en"]
    text = _BLOCK.sub(
        lambda m: f"{m[1]}\n{figures.block(m[2], words, page)}\n\n{m[4].strip()}", text
    )
    return _INLINE.sub(lambda m: m[1] + figures.line(m[2], words) + m[4], text)


def write(*, check: bool) -> int:
    figures = Figures(ROOT / "benchmarks")
    wanted = {page: filled(page.read_text("utf-8"), page, figures) for page in pages()}
    images = ROOT / "docs" / "images"
    wanted |= {images / f"h200-{name}.svg": svg for name, svg in figures.charts.items()}
    wanted[ROOT / BUILDS] = json.dumps({"version": 1, "engines": figures.builds}, indent=1) + "\n"
    stale = [
        path
        for path, text in wanted.items()
        if not path.is_file() or path.read_text("utf-8") != text
    ]
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    return 1 if check and stale else 0


# --- pictures of the terminal -------------------------------------------------------------------

# Name: the command and the width of its terminal; each works on what the one before has left.
_TERMINALS = {
    "match": ("profiles match 1600x1200", 80),
    "build": ("build --mode static --resolution 256x256 --model bundled:tiny", 80),
    "verify": ("verify --resolution 256x256 --model bundled:tiny", 80),
}


def draw_terminals() -> None:
    """Run commands with the bundled model, and draw what they print."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    with tempfile.TemporaryDirectory() as folder:
        for name, (arguments, width) in _TERMINALS.items():
            command = [sys.executable, "-m", "qvae_trt", *arguments.split()]
            environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(width)}
            ran = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=True
            )
            console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
            console.print(Text(f"$ qvae {arguments}", style="bold"), soft_wrap=True)
            console.print(Text.from_ansi(ran.stdout.rstrip()), soft_wrap=True)
            console.print()  # else the last line is cut at its descenders
            svg = console.export_svg(title="qvae", theme=MONOKAI, unique_id=f"qvae-{name}")
            # Rich asks a server for its font; the reader's own monospace will do.
            svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
            svg = svg.replace("font-family: Fira Code, monospace", "font-family: monospace")
            svg = svg.replace("<!-- Generated with Rich https://www.textualize.io -->", "")
            (ROOT / "docs" / "images" / f"terminal-{name}.svg").write_text(svg, "utf-8")


def photograph_report() -> None:
    """docs/images/report.png: the HTML page of the H200's results, in headless Chromium."""
    found = [name for name in ("chromium", "chromium-browser", "google-chrome") if which(name)]
    result = Figures(ROOT / "benchmarks").result
    if not found or result is None:
        sys.exit("no Chromium on the path" if not found else "nothing is measured yet")
    from qvae_trt.report import write_html

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_html([result], page)
        command = [
            found[0],
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1000,1100",
        ]
        target = ROOT / "docs" / "images" / "report.png"
        subprocess.run([*command, f"--screenshot={target}", page.as_uri()], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Figures of README.md and docs/ from benchmarks/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    parser.add_argument("--terminal", action="store_true", help="draw the pictures of terminals")
    parser.add_argument("--report", action="store_true", help="photograph the HTML report")
    given = parser.parse_args()
    if given.terminal:
        draw_terminals()
    if given.report:
        photograph_report()
    return write(check=given.check)


if __name__ == "__main__":
    sys.exit(main())
