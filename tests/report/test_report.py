"""The files of a report: all written, and safe with any text in them."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from bench_samples import result
from report_cases import EVIL, evil, partial

from qvae_trt import report
from qvae_trt.bench import results
from qvae_trt.errors import StoreError

if TYPE_CHECKING:
    from pathlib import Path


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
    assert results.load(tmp_path / "out") == result()
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
