"""Results that are hostile or have gaps, and the page as a browser reads it."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

from bench_samples import SQUARE, WIDE, result

from qvae_trt import report
from qvae_trt.bench.results import BenchResult, Cell

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "<script>alert('1')</script> | `x` **b** [l](http://e.example) & \"q\"\nnew"


def partial() -> BenchResult:
    """A column that is missing everywhere, and one cell that is missing."""
    found = result(
        paths=("pytorch", "folded", "static", "profiles"), absent=("compiled",), service=True
    )
    cells = tuple(
        replace(cell, timing=None, notes=("no engine there",))
        if (cell.path, cell.resolution) == ("static", SQUARE)
        else cell
        for cell in found.cells
    )
    return replace(found, cells=cells)


def evil() -> BenchResult:
    """Every string that a file can hold is hostile."""
    found = result(
        model=EVIL, command=EVIL, machine={"gpu": EVIL, EVIL: EVIL}, versions={EVIL: EVIL}
    )
    more = Cell(
        part="decoder", resolution=WIDE, path=EVIL, notes=(EVIL,), timing=found.cells[0].timing
    )
    empty = Cell(part="encoder", resolution=WIDE, path=EVIL, notes=(EVIL,))
    return replace(found, cells=(*found.cells, more, empty))


class Page(HTMLParser):
    """What a browser would see: tags, ids, links, text outside of style sheets."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "rect", "line", "path", "br", "img", "hr"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name == "src":
                self.loaded.append(value or "")
            elif name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def html(tmp_path: Path, *results: BenchResult) -> Page:
    path = tmp_path / "report.html"
    report.write_html(results, path)
    return Page(path.read_text("utf-8"))
