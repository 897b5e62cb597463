"""`qvae report --merge`: two runs of one machine as one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench_samples import WIDE, result

from qvae_trt.bench import results
from qvae_trt.cli import app as cli

ENGINES = ("pytorch", "folded", "static")
COMPILED = ("pytorch", "compiled")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    results.save(result(paths=ENGINES, absent=("compiled",)), tmp_path / "engines/latency.json")
    results.save(result(paths=COMPILED, scale=1.02), tmp_path / "compiled/latency.json")
    return tmp_path


def report(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert cli.main(["report", *arguments]) == code
    return capsys.readouterr()


def test_two_runs_become_one_table(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = report(
        capsys, "engines/latency.json", "compiled", "--merge", "both", "--out", "page.html"
    )
    names = ["latency.md", "latency.json", "latency.csv", "latency.svg", "speedup.svg"]
    assert out.split() == [*(f"both/{n}" for n in names), "both/memory.svg", "page.html"]
    assert err == ""
    merged = results.load(workplace / "both")
    assert merged.paths == ("pytorch", "folded", "compiled", "static")
    lines = (workplace / "both/latency.md").read_text("utf-8").splitlines()
    row = next(line for line in lines if line.startswith("| 1664x928 |"))
    assert row == "| 1664x928 | 100.0 | 50.0 (2.00×) | 25.5 (4.00×) | **20.0** (5.00×) |"
    page = (workplace / "page.html").read_text("utf-8")
    assert 'id="compared"' not in page
    assert "Merged from 2 runs" in page


def test_without_merge_nothing_but_the_page_is_written(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = report(capsys, "engines", "compiled", "--json")
    assert json.loads(out)["written"] == ["report.html"]
    assert {p.name for p in workplace.iterdir()} == {"engines", "compiled", "report.html"}


def test_what_two_runs_have_both_is_told(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(result(paths=("pytorch", "folded", "compiled"), scale=2), workplace / "c.json")
    _, err = report(capsys, "engines", "c.json", "--merge", "both")
    assert err.splitlines() == [
        "warning: in several files, the first is kept: folded decoder",
        "warning: in several files, the first is kept: folded encoder",
    ]
    kept = results.load(workplace / "both").cell("decoder", WIDE, "folded")
    assert kept is not None
    assert kept.timing is not None
    assert kept.timing.median_ms == pytest.approx(50.0)


def test_two_machines_are_refused_and_nothing_is_written(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.save(result(machine={"gpu": "NVIDIA L4"}), workplace / "l4.json")
    _, err = report(capsys, "engines", "l4.json", "--merge", "both", code=1)
    assert "two machines cannot share a table" in err
    assert "side by side" in err
    assert not (workplace / "both").exists()
    assert not (workplace / "report.html").exists()


def test_two_files_of_one_machine_are_compared_unless_merge_is_given(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report(capsys, "engines", "compiled")
    page = (workplace / "report.html").read_text("utf-8")
    assert 'id="compared"' in page
    assert "Merged from" not in page
