"""Pictures in docs/images/: charts of the latencies, what commands print, the HTML report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

from figures.measured import Measured, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGES = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
CHARTS = ("latency", "speedup", "memory")
# These are of the static sizes; of all others there is one.
OTHERS = "latency-others"


def picture(measured: Measured, name: str, words: Mapping[str, str], page: Path) -> str:
    """The HTML that shows a chart: the wide one, or the narrow one on a phone."""
    if name == OTHERS and OTHERS not in charts(measured):
        return ""  # the text beside it says that nothing was measured there
    if name not in charts(measured):
        raise MissingError
    chart = f"{os.path.relpath(IMAGES, page.parent)}/{measured.host}-{name}"
    gpu = measured.table.runs[0].machine["gpu"]
    return (
        f'<picture><source media="(max-width: 600px)" srcset="{chart}-narrow.svg">'
        f'<img alt="{words[name]}, {gpu}" src="{chart}.svg">'
        "</picture>"
    )


def charts(measured: Measured) -> dict[str, str]:
    """The charts as SVG, by name: beside each other for a desk, and one below the other for a
    phone, where the wide ones would be too small to read.
    """
    if measured.result is None:
        return {}
    from qvae_trt.report import charts, svg

    sets = measured.sets
    table = sets.get("static", measured.result)
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


# Name: the command and the width of its terminal; each works on what the one before has left.
TERMINALS = {
    "match": ("profiles match 1600x1200", 110),
    "build": ("build --mode static --resolution 256x256 --model bundled:tiny", 120),
    "verify": ("verify --resolution 256x256 --model bundled:tiny", 120),
}


def draw_terminals() -> None:
    """Run commands with the bundled model, and draw what they print."""
    with tempfile.TemporaryDirectory() as folder:
        for name in TERMINALS:
            (IMAGES / f"terminal-{name}.svg").write_text(terminal(name, Path(folder)), "utf-8")


def terminal(name: str, folder: Path) -> str:
    """What a command prints in this folder, as a picture of a terminal."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    arguments, width = TERMINALS[name]
    ran = subprocess.run(
        [sys.executable, "-m", "qvae_trt", *arguments.split()],
        cwd=folder,
        env=os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(width)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    if not ran.stdout.strip():
        sys.exit(f"qvae {arguments} printed nothing")
    console = Console(record=True, width=width, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(Text(f"$ qvae {arguments}", style="bold"), soft_wrap=True)
    console.print(Text.from_ansi(ran.stdout.rstrip()), soft_wrap=True)
    console.print()  # else the last line is cut at its descenders
    svg = console.export_svg(title="qvae", theme=MONOKAI, unique_id=f"qvae-{name}")
    # Rich asks a server for its font; the reader's own monospace will do.
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("font-family: Fira Code, monospace", "font-family: monospace")
    return svg.replace("<!-- Generated with Rich https://www.textualize.io -->", "")


def photograph_report(measured: Measured) -> None:
    """report.png: the HTML page of the results, in headless Chromium."""
    found = [name for name in ("chromium", "chromium-browser", "google-chrome") if which(name)]
    if not found or measured.result is None:
        sys.exit("no Chromium on the path" if not found else "nothing is measured yet")
    from qvae_trt.report import write_html

    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        write_html([measured.result], page)
        command = [
            found[0],
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1000,1100",  # the first screen; the page is longer
        ]
        subprocess.run(
            [*command, f"--screenshot={IMAGES / 'report.png'}", page.as_uri()], check=True
        )
