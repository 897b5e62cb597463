"""The bench's tables on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from bench_samples import NO_TRITON, result
from report_cases import html, partial
from rich.console import Console

from qvae_trt import report
from qvae_trt.bench import compare
from qvae_trt.cli.commands.measuring import comparison_table, screen
from qvae_trt.report import Report


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
    for text in (
        drawn(screen(Report(found)), width=100),
        report.markdown_page(Report(found)),
        page,
    ):
        assert text.count("20.0 ±") == 1
        assert "7 to 20 runs" in text
    assert "±" not in drawn(screen(Report(result())), width=100)


def test_the_screen_at_80_columns_loses_nothing() -> None:
    text = drawn(screen(Report(partial())), width=80)
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
    assert [line.split() for line in drawn(screen(Report(result()))).splitlines()].count(
        ["mean", "2.00×", "4.00×", "5.00×", "4.50×"]
    ) == 2  # fmt: skip
    text = drawn(screen(Report(partial())), width=80)
    assert [line.split() for line in text.splitlines()].count(
        ["mean", "of", "1", "2.00×", "5.00×", "4.50×"]
    ) == 2  # fmt: skip


def test_the_fastest_is_bold_and_speed_ups_are_coloured() -> None:
    text = drawn(screen(Report(result())), colour=True)
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
    assert "\x1b[31m 0.20×" in drawn(screen(Report(worse)), colour=True), "slower is red"


def test_markup_in_names_is_text() -> None:
    odd = result(machine={"gpu": "[red]GPU[/red] [/]"}, absent=())
    assert "[red]GPU[/red] [/]" in drawn(screen(Report(odd)))


def test_regressions_are_red() -> None:
    found = compare.compare(result(), result(scale=1.5))
    text = drawn(comparison_table(found), colour=True)
    assert "\x1b[1;31m+50.0 %" in text
    elsewhere = compare.compare(result(), result(machine={"gpu": "[b]NVIDIA L4"}))
    told = " ".join(drawn(comparison_table(elsewhere)).split())
    assert "then [b]NVIDIA L4" in told
