"""Results in Markdown."""

from __future__ import annotations

from bench_samples import NO_TRITON, result
from markdown_it import MarkdownIt
from report_cases import Page, evil, partial

from qvae_trt import report
from qvae_trt.bench import compare
from qvae_trt.report import Report

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
    text = report.markdown_page(Report(partial()), charts=["latency.svg"])
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
        .render(report.markdown_page(Report(evil())))
    )
    page = Page(html)
    assert "script" not in page.tags
    assert "a" not in page.tags
    assert "http://e.example" in page.text


def test_an_unfinished_bench_says_so() -> None:
    text = report.markdown_page(Report(result(complete=False)))
    assert "> The bench ended before it was done" in text


def test_a_merge_shows_its_ties() -> None:
    merged = compare.merge(
        [result(paths=("pytorch", "static")), result(scale=1.2, paths=("pytorch", "folded"))]
    )
    text = report.markdown_page(Report(merged))
    assert "1.200 times the first, in" in text
    assert "compare speed-ups, not milliseconds" in text
    assert "### Machine, run 2" in text


# --- HTML ---
