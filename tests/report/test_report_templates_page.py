"""The page: whole, loads nothing, and safe with any text in it."""

from __future__ import annotations

import re
import time
from itertools import combinations
from pathlib import Path

import pytest
from bench_samples import NO_TRITON, SQUARE, WIDE, result
from report_cases import EVIL, evil, html, partial

import qvae_trt
from qvae_trt.bench import compare, results
from qvae_trt.errors import UsageError
from qvae_trt.report import Report, svg, write_html
from qvae_trt.report.model import labels


def test_no_result_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        write_html([], tmp_path / "report.html")


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
    assert Report(first).remarks == [cpu, missing]
    remarks = Report(compare.merge([first, second])).remarks
    assert cpu in remarks
    assert missing not in remarks


def test_every_path_has_a_colour_of_its_own() -> None:
    light, dark = svg.document([], width=100).split("prefers-color-scheme:dark")
    for theme in (light, dark):
        fills = dict(re.findall(r"\.qv-s-(\w+)\{fill:#(\w{6})\}", theme))
        drawn_in = [bytes.fromhex(fills[path]) for path in results.PATHS]
        for one, other in combinations(drawn_in, 2):
            assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) > 60, (one, other)


def test_a_cpu_is_told_larger_than_any_speed_up(tmp_path: Path) -> None:
    said = "Measured on a CPU"
    assert said not in html(tmp_path, result()).text
    assert said in html(tmp_path, result(device="cpu")).text
    style = (Path(qvae_trt.__file__).parent / "data/templates/page.css").read_text("utf-8")

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


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    page = html(tmp_path, result(sizes=(WIDE,)), result(sizes=(SQUARE,), machine={"gpu": "B"}))
    assert "no measurement in common" in page.text


def test_a_long_word_is_cut_where_it_fits_and_at_once():
    word = "wide mi" * 50_000
    begun = time.process_time()
    cut = svg.fit(word, 200.0, 12.0)
    # Takes a third of a second; if the whole were measured anew for each letter, hours.
    assert time.process_time() - begun < 20.0
    assert cut.endswith("…")
    assert svg.text_width(cut, 12.0) <= 200.0 < svg.text_width(word[: len(cut)] + "…", 12.0)
    assert svg.fit("short", 200.0, 12.0) == "short"
