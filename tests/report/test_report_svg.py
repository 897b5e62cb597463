"""Charts: whole, legible, and safe with any text in them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest
from bench_samples import WIDE, result, run
from report_cases import evil

from qvae_trt import report
from qvae_trt.bench.results import BenchResult, Cell
from qvae_trt.profiles import Resolution
from qvae_trt.report import charts, svg
from qvae_trt.report import templates as numbers
from qvae_trt.report.svg import Bar, Chart

if TYPE_CHECKING:
    from pathlib import Path


SVG = "{http://www.w3.org/2000/svg}"


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
        groups={"1x1": {"pytorch": Bar(value=100.0), "static": Bar(value=25.0)}},
        best={"1x1": "static"},
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


def test_a_bar_alone_is_not_the_best() -> None:
    text = svg.document(charts.memory(result(paths=("static",))), width=960)
    assert 'font-weight="700"' not in text
