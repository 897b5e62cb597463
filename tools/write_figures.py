"""Fill the figures of README.md and docs/ from `benchmarks/**.json`, so that none is ever typed.

    write_figures.py             writes what is between the markers, and the charts
    write_figures.py --check     exit 1 where that would change a file
    write_figures.py --terminal  draws docs/images/terminal-*.svg anew
    write_figures.py --report    photographs the page that `qvae report` makes; needs Chromium

In a line: `<!-- f KEY -->what was written<!-- /f -->`. Over several lines: `<!-- block KEY -->`,
the block, `<!-- /block -->`. Where a measurement is missing, the words for that are written.

The figures are those of the first of `figures.measured.HOSTS`; before a key, `h200/` says which
other machine is meant.

Keys of a line:
    range:PART:PATH      speed-up over stock diffusers, least to largest over the sizes
    build:PART:MODE      seconds that building one engine took, least to largest
    cell:PART:PATH:WxH:WHAT    of one cell: median, memory (beside the weights) or first (call)
    first:STATE:WHAT     first use of the fused path, cold, warm (kernels cached) or busy (warm, on
                         a busy host): of a process, of a size (at most), or after offload
    graph:PART:WxH:WHAT  the fused path at a small size, eager or as a graph
    share:PATH:STEPS     of a decode in a generation of so many steps
    post:PROCESSOR:PATH:WxH      what post-processing takes of a latents-to-PIL call
    json:FILE:A.B[name=x].C[0]:FORMAT      any value; FORMAT is ms, gib, mib, int or text
Keys of a block:
    sizes  profiles  bounds  gain  machine  latency:PART  service  modes  memory  parity
    beside:PART  best
    picture:NAME
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from figures.blocks import block
from figures.lines import line
from figures.measured import HOSTS, Measured
from figures.pictures import IMAGES, charts, draw_terminals, photograph_report

ROOT = Path(__file__).resolve().parent.parent
BUILDS = Path("qvae_trt/data/builds.json")
_INLINE = re.compile(r"(<!-- f (\S+) -->)(.*?)(<!-- /f -->)")
_BLOCK = re.compile(r"(<!-- block (\S+) -->\n)(.*?)(\n?<!-- /block -->)", re.DOTALL)


def pages(root: Path = ROOT) -> list[Path]:
    """README.md and every page of the docs."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, page: Path, measured: Measured) -> str:
    """A page with its figures as they are now."""
    language = "zh" if "zh" in page.parts else "en"
    text = _BLOCK.sub(
        lambda m: f"{m[1]}\n{block(measured, m[2], language, page)}\n\n{m[4].strip()}", text
    )
    return _INLINE.sub(lambda m: m[1] + line(measured, m[2], language) + m[4], text)


def write(measured: Measured, *, check: bool) -> int:
    wanted = {page: filled(page.read_text("utf-8"), page, measured) for page in pages()}
    wanted |= {
        IMAGES / f"{measured.host}-{name}.svg": svg for name, svg in charts(measured).items()
    }
    builds = [row for host in HOSTS for row in measured.of(host).builds]
    wanted[ROOT / BUILDS] = json.dumps({"version": 1, "engines": builds}, indent=1) + "\n"
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


def main() -> int:
    parser = argparse.ArgumentParser(description="Figures of README.md and docs/ from benchmarks/.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    parser.add_argument("--terminal", action="store_true", help="draw the pictures of terminals")
    parser.add_argument("--report", action="store_true", help="photograph the HTML report")
    given = parser.parse_args()
    measured = Measured(ROOT / "benchmarks")
    if given.terminal:
        draw_terminals()
    if given.report:
        photograph_report(measured)
    return write(measured, check=given.check)


if __name__ == "__main__":
    sys.exit(main())
