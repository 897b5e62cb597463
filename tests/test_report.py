"""Tables, charts and pages: legible, whole, and safe with any text in them."""

from __future__ import annotations

import csv
import io
import re
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest
from bench_samples import NO_TRITON, SQUARE, WIDE, result, run
from markdown_it import MarkdownIt
from rich.console import Console

from qvae_trt import bench, report
from qvae_trt.bench import BenchResult, Cell
from qvae_trt.cli.bench_tables import comparison_table, screen
from qvae_trt.errors import StoreError, UsageError
from qvae_trt.profiles import Resolution
from qvae_trt.report import charts, describe, numbers, svg
from qvae_trt.report.model import labels
from qvae_trt.report.svg import Bar, Chart

EVIL = "<script>alert('1')</script> | `x` **b** [l](http://e.example) & \"q\"\nnew"
SVG = "{http://www.w3.org/2000/svg}"


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


# --- numbers ---


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.1234, "0.12"),
        (9.876, "9.88"),
        (27.55, "27.6"),
        (107.2, "107.2"),
        (2304.4, "2304"),
    ],
)
def test_milliseconds(value: float | None, shown: str) -> None:
    assert numbers.ms(value) == shown


def test_other_numbers() -> None:
    assert numbers.times(3.876) == "3.88×"
    assert numbers.times(None) == "–"
    assert numbers.size(3 * 2**29) == "1.50 GiB"
    assert numbers.size(10 * 2**20) == "10 MiB"
    assert numbers.share(0.384) == "38 %"
    assert numbers.share(0.0042) == "0.42 %"


# --- the screen ---


def drawn(shown: object, width: int = 100, *, colour: bool = False) -> str:
    file = io.StringIO()
    system = "standard" if colour else None
    Console(file=file, width=width, force_terminal=colour, color_system=system).print(shown)  # type: ignore[arg-type]
    return file.getvalue()


def test_a_wide_spread_is_marked_wherever_it_is_shown(tmp_path: Path) -> None:
    cells = list(result().cells)
    place = next(n for n, c in enumerate(cells) if c.path == "static" and c.part == "decoder")
    timing = cells[place].timing
    assert timing is not None
    wide = replace(timing, p90_ms=timing.median_ms * 1.3, runs=7)
    cells[place] = replace(cells[place], timing=wide)
    found = replace(result(), cells=tuple(cells))
    page = html(tmp_path, found).text
    for text in (drawn(screen(describe(found)), width=100), report.markdown(describe(found)), page):
        assert text.count("20.0 ±") == 1
        assert "7 to 20 runs" in text
    assert "±" not in drawn(screen(describe(result())), width=100)


def test_the_screen_at_80_columns_loses_nothing() -> None:
    text = drawn(screen(describe(partial())), width=80)
    assert "…" not in text
    for piece in (
        "1664x928",
        "20.0 5.00×",
        "50.0 2.00×",
        "100.0",
        "–",
        "no engine there",
        NO_TRITON,
    ):
        assert piece in text
    assert "compiled was not measured" in text
    lines = [line for line in text.splitlines() if line.strip().startswith("1664x928")]
    assert "pytorch" not in lines[0]
    assert max(map(len, text.splitlines())) <= 80


def test_means_say_over_how_many_sizes() -> None:
    assert [line.split() for line in drawn(screen(describe(result()))).splitlines()].count(
        ["mean", "2.00×", "4.00×", "5.00×", "4.50×"]
    ) == 2  # fmt: skip
    text = drawn(screen(describe(partial())), width=80)
    assert [line.split() for line in text.splitlines()].count(
        ["mean", "of", "1", "2.00×", "5.00×", "4.50×"]
    ) == 2  # fmt: skip


def test_the_fastest_is_bold_and_speed_ups_are_coloured() -> None:
    text = drawn(screen(describe(result())), colour=True)
    assert "\x1b[1m20.0" in text, "the fastest is bold"
    assert "\x1b[1;32m 5.00×" in text, "twice and more is bold green"
    slow = result(paths=("pytorch", "folded"))
    worse = replace(
        slow,
        cells=tuple(
            replace(c, timing=replace(c.timing, median_ms=500.0))
            if c.path == "folded" and c.timing
            else c
            for c in slow.cells
        ),
    )
    assert "\x1b[31m 0.20×" in drawn(screen(describe(worse)), colour=True), "slower is red"


def test_markup_in_names_is_text() -> None:
    odd = result(machine={"gpu": "[red]GPU[/red] [/]"}, absent=())
    assert "[red]GPU[/red] [/]" in drawn(screen(describe(odd)))


def test_regressions_are_red() -> None:
    found = bench.compare(result(), result(scale=1.5))
    text = drawn(comparison_table(found), colour=True)
    assert "\x1b[1;31m+50.0 %" in text
    elsewhere = bench.compare(result(), result(machine={"gpu": "[b]NVIDIA L4"}))
    told = " ".join(drawn(comparison_table(elsewhere)).split())
    assert "then [b]NVIDIA L4" in told


# --- Markdown ---


def tables(markdown: str) -> list[list[list[str]]]:
    """The tables of a document as GitHub's grammar sees them: their inline text, cell by cell."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    found: list[list[list[str]]] = []
    for place, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append(tokens[place + 1].content)
    return found


def test_markdown_tables_are_tables() -> None:
    text = report.markdown(describe(partial()), charts=["latency.svg"])
    found = tables(text)
    decode = found[0]
    assert decode[0] == ["size", "pytorch", "folded", "static", "profiles"]
    assert decode[1] == ["1664x928", "100.0", "50.0 (2.00×)", "**20.0** (5.00×)", "22.2 (4.50×)"]
    assert decode[2] == ["1328x1328", "100.0", "50.0 (2.00×)", "– \\[1\\]", "**22.2** (4.50×)"]
    assert decode[3] == [
        "mean speed-up",
        "",
        "2.00× (1 size)",
        "5.00× (1 size)",
        "4.50× (1 size)",
    ]
    assert "1. no engine there" in text
    assert f"- compiled was not measured: {NO_TRITON}" in text
    assert "![latency by size](latency.svg)" in text
    assert all(len({len(row) for row in table}) == 1 for table in found)
    assert len(found) == 2 + 3 + 2 + 1  # latency, service, details, machine


def test_markdown_of_hostile_text_is_text() -> None:
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(report.markdown(describe(evil())))
    )
    page = Page(html)
    assert "script" not in page.tags
    assert "a" not in page.tags
    assert "http://e.example" in page.text


def test_an_unfinished_bench_says_so() -> None:
    text = report.markdown(describe(result(complete=False)))
    assert "> The bench ended before it was done" in text


def test_a_merge_shows_its_ties() -> None:
    merged = bench.merge(
        [result(paths=("pytorch", "static")), result(scale=1.2, paths=("pytorch", "folded"))]
    )
    text = report.markdown(describe(merged))
    assert "1.200 to 1.200 times" in text
    assert "compare speed-ups, not milliseconds" in text
    assert "### Machine, run 2" in text


# --- CSV ---


def test_csv_has_every_cell() -> None:
    found = partial()
    rows = list(csv.DictReader(io.StringIO(report.csv_text(found))))
    assert len(rows) == len(found.cells)
    row = next(
        r for r in rows if r["path"] == "static" and r["part"] == "decoder" and r["median_ms"]
    )
    assert (row["resolution"], row["width"], row["height"]) == ("1664x928", "1664", "928")
    assert float(row["median_ms"]) == 20.0
    assert float(row["speedup"]) == 5.0
    assert float(row["floor_share"]) == 0.5
    empty = next(r for r in rows if r["path"] == "static" and not r["median_ms"])
    assert empty["notes"] == "no engine there"
    assert empty["speedup"] == ""


def test_csv_of_hostile_text_keeps_its_lines() -> None:
    rows = list(csv.reader(io.StringIO(report.csv_text(evil()))))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert rows[-1][-1] == EVIL


# --- SVG ---

SIZES = tuple(Resolution(side, 16 * side) for side in (8, 16, 256, 512, 768, 1024))


def texts(
    root: ET.Element, x: float = 0.0, y: float = 0.0
) -> list[tuple[str, float, float, float, float]]:
    """Every text of a picture with its box: left, top, right, bottom, as it was laid out."""
    found = []
    for child in root:
        dx, dy = x, y
        move = child.get("transform")
        if move is not None:
            dx, dy = (
                base + float(step)
                for base, step in zip(
                    (x, y), move.removeprefix("translate(").rstrip(")").split(","), strict=True
                )
            )
        if child.tag == f"{SVG}text":
            size = float(child.get("font-size", "12"))
            label = child.text or ""
            wide = svg.text_width(label, size, bold=child.get("font-weight", "400") >= "600")
            left = dx + float(child.get("x", "0"))
            left -= {"start": 0.0, "middle": wide / 2, "end": wide}[
                child.get("text-anchor", "start")
            ]
            base = dy + float(child.get("y", "0"))
            found.append((label, left, base - size * 0.8, left + wide, base + size * 0.2))
        found += texts(child, dx, dy)
    return found


@pytest.mark.parametrize("width", [344, 960])
@pytest.mark.parametrize("kind", [charts.latency, charts.speedup, charts.memory, charts.service])
def test_no_text_is_cut_and_none_meets_another(kind: object, width: int) -> None:
    for found in (
        result(service=True),
        result(scale=1e4, service=True),
        result(scale=1e-3, sizes=SIZES),
    ):
        made = kind(found)  # type: ignore[operator]
        if not made:
            continue
        columns = min(len(made), 2) if width > 500 else 1
        root = ET.fromstring(svg.document(made, width=width, columns=columns))
        height = float(root.get("height", "0"))
        boxes = texts(root)
        assert len(boxes) > 10
        for label, left, top, right, bottom in boxes:
            assert left >= 0, label
            assert right <= width, label
            assert top >= 0, label
            assert bottom <= height, label
        for place, one in enumerate(boxes):
            for other in boxes[place + 1 :]:
                apart = (
                    one[3] <= other[1]
                    or other[3] <= one[1]
                    or one[4] <= other[2]
                    or other[4] <= one[2]
                )
                assert apart, (one, other)


def test_bars_are_as_long_as_their_values() -> None:
    chart = Chart(
        title="t",
        subtitle="s",
        series=("pytorch", "static"),
        groups=(("1x1", {"pytorch": Bar(value=100.0), "static": Bar(value=25.0, best=True)}),),
        text=numbers.ms,
        labels={},
    )
    root = ET.fromstring(svg.document([chart], width=500))
    bars = [
        group.find(f"{SVG}rect")
        for group in root.iter(f"{SVG}g")
        if group.find(f"{SVG}title") is not None
    ]
    widths = [float(bar.get("width", "0")) for bar in bars if bar is not None]
    assert widths[0] == pytest.approx(4 * widths[1], rel=0.01)
    bold = [text.text for text in root.iter(f"{SVG}text") if text.get("font-weight") == "700"]
    assert bold == ["25.0"]


@pytest.mark.parametrize("most", [0.003, 0.9, 1.0, 7.0, 99.0, 1e6])
@pytest.mark.parametrize("span", [40.0, 200.0, 900.0])
def test_ticks_cover_and_do_not_crowd(most: float, span: float) -> None:
    ticks = svg.ticks_for(most, span)
    assert ticks[0] == 0
    assert most <= ticks[-1] * 1.0001
    assert len(ticks) <= span / 45 + 3


def test_a_chart_of_nothing_is_still_a_picture(tmp_path: Path) -> None:
    nothing = BenchResult(
        runs=(run(),),
        cells=(Cell(part="decoder", resolution=WIDE, path="pytorch", notes=("oom",)),),
    )
    report.write_tables(nothing, tmp_path)
    root = ET.fromstring((tmp_path / "latency.svg").read_text("utf-8"))
    assert any("Nothing was measured" in (text.text or "") for text in root.iter(f"{SVG}text"))
    assert "Nothing could be measured" in (tmp_path / "latency.md").read_text("utf-8")


def test_dark_is_provided_for() -> None:
    text = svg.document(charts.latency(result()), width=960, columns=2)
    assert "prefers-color-scheme:dark" in text
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_hostile_text_in_a_chart_is_text() -> None:
    root = ET.fromstring(svg.document(charts.latency(evil()), width=960, columns=2))
    assert not list(root.iter(f"{SVG}script"))
    assert root.find(f"{SVG}title") is not None


# --- files ---


def test_the_four_files_and_two_more(tmp_path: Path) -> None:
    written = report.write_tables(result(), tmp_path / "out")
    names = {
        "latency.md",
        "latency.json",
        "latency.csv",
        "latency.svg",
        "speedup.svg",
        "memory.svg",
    }
    assert {path.name for path in written} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert bench.load(tmp_path / "out") == result()
    lonely = replace(result(paths=("static",)), cells=result(paths=("static",)).cells[:1])
    lonely = replace(lonely, cells=(replace(lonely.cells[0], peak_bytes=None),))
    report.write_tables(lonely, tmp_path / "out")
    assert not (tmp_path / "out" / "speedup.svg").exists(), "no picture of an older result stays"
    assert not (tmp_path / "out" / "memory.svg").exists()


def test_the_reference_has_one_name_wherever_people_read_it(tmp_path: Path) -> None:
    report.write_tables(result(), tmp_path)
    report.write_html([result()], tmp_path / "report.html")
    for name in ("latency.md", "speedup.svg", "report.html"):
        text = (tmp_path / name).read_text("utf-8")
        assert "stock diffusers" in text, name
        assert "as shipped" not in text, name


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        report.write_tables(result(), tmp_path / "file")
    with pytest.raises(StoreError):
        report.write_html([result()], tmp_path / "file" / "report.html")


# --- HTML ---


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


def test_the_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    page = html(tmp_path, partial())
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.loaded == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 2 * 4, "latency, speed-up, memory, service: wide and narrow"
    for piece in ("5.00×", "22.2", "NVIDIA H200", "8.6.1", "no engine there", NO_TRITON, "ab" * 8):
        assert piece in page.text


def test_hostile_text_on_the_page_is_text(tmp_path: Path) -> None:
    page = html(tmp_path, evil(), result(machine={"gpu": EVIL + "2"}))
    assert page.open == []
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.text.count("<script>alert('1')</script>") > 5
    assert all(link.startswith("#") for link in page.links)


def test_what_one_run_of_a_merge_left_out_is_not_said_of_the_whole() -> None:
    cpu, missing = "Measured on a CPU.", "No engine folder was given: engines were not measured."
    first = result(paths=("pytorch", "folded"), notes=(cpu, missing))
    second = result(paths=("pytorch", "static"), notes=(cpu,))
    assert describe(first).remarks == (cpu, missing)
    remarks = describe(bench.merge([first, second])).remarks
    assert cpu in remarks
    assert missing not in remarks


def test_every_path_has_a_colour_of_its_own() -> None:
    for mode in (0, 1):
        drawn_in = [
            [int(svg._COLOURS[path][mode][n : n + 2], 16) for n in (1, 3, 5)]
            for path in bench.PATHS
        ]
        for one, other in combinations(drawn_in, 2):
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60, (one, other)


def test_a_cpu_is_told_larger_than_any_speed_up(tmp_path: Path) -> None:
    said = "Measured on a CPU"
    assert said not in html(tmp_path, result()).text
    assert said in html(tmp_path, result(device="cpu")).text
    style = (Path(report.__file__).parent / "page.css").read_text("utf-8")

    def pixels(rule: str) -> int:
        found = re.search(rf"^{re.escape(rule)} \{{[^}}]*?font-size: (\d+)px", style, re.M)
        assert found is not None, rule
        return int(found[1])

    assert pixels(".cpu") > pixels(".tile b")


def test_two_machines_side_by_side(tmp_path: Path) -> None:
    page = html(tmp_path, result(), result(scale=2.0, machine={"gpu": "NVIDIA L4"}))
    assert {"compared", "r0", "r1"} <= set(page.ids)
    assert "40.00.50×" in page.text, "the second one's median and how it stands to the first"
    assert "What differs" in page.text
    assert set(page.links) <= {f"#{name}" for name in page.ids}
    assert page.open == []


def test_runs_of_one_machine_are_compared_as_well(tmp_path: Path) -> None:
    engines = result(paths=("pytorch", "static"), absent=("compiled",))
    page = html(tmp_path, engines, result(paths=("pytorch", "compiled")))
    assert "compared" in page.ids
    assert "Merged" not in page.text


def test_before_and_after_are_told_apart(tmp_path: Path) -> None:
    page = html(tmp_path, result(), result(scale=0.9, created="2026-02-01T00:00:00+00:00"))
    assert "2026-01-02" in page.text
    assert "2026-02-01" in page.text
    assert labels([result(), result()])[1].endswith("(#2)")


def test_no_result_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        report.write_html([], tmp_path / "report.html")


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    page = html(tmp_path, result(sizes=(WIDE,)), result(sizes=(SQUARE,), machine={"gpu": "B"}))
    assert "no measurement in common" in page.text


def test_a_long_word_is_cut_where_it_fits_and_at_once():
    word = "wide mi" * 50_000
    begun = time.perf_counter()
    cut = svg.fit(word, 200.0, 12.0)
    assert time.perf_counter() - begun < 2.0
    assert cut.endswith("…")
    assert svg.text_width(cut, 12.0) <= 200.0 < svg.text_width(word[: len(cut)] + "…", 12.0)
    assert svg.fit("short", 200.0, 12.0) == "short"
