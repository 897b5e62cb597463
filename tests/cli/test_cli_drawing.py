"""What a person reads on a terminal: tables that fit it, estimates, a way on."""

from __future__ import annotations

import io
import json

import pytest
from bench_samples import result
from cli_cases import drawn

from qvae_trt.bench.compare import compare
from qvae_trt.cli import app as cli
from qvae_trt.cli import output
from qvae_trt.cli.commands.measuring import comparison_table
from qvae_trt.cli.drawing import Table
from qvae_trt.profiles import Resolution

HEADERS = ("", "engine", "file", "MiB", "why")


FILE = "engines/static/1664x928/vae_encoder.trt"


ROWS = [("planned", "encoder 1664x928", FILE, "41.2", "because")]


def test_a_table_with_room_has_every_column() -> None:
    lines = drawn(Table(HEADERS, ROWS, spare=("file",)), 100)
    assert lines[-1].split("   ")[2] == FILE


def test_a_narrow_table_leaves_out_what_may_go_and_says_so() -> None:
    lines = drawn(Table(HEADERS, ROWS, spare=("file", "MiB")), 60)
    assert lines[0].split() == ["engine", "MiB", "why"]
    assert lines[2].split("   ") == ["planned", "encoder 1664x928", "41.2", "because"]
    assert lines[3].startswith("No room for file:")


def test_a_table_too_narrow_for_anything_loses_no_text() -> None:
    lines = drawn(Table(HEADERS, ROWS), 40)
    assert max(map(len, lines)) <= 40
    text = "".join("".join(line.split()) for line in lines)
    assert "…" not in text
    assert all(part in text for part in ("because", "41.2"))


def test_long_reasons_wrap_and_cost_no_column() -> None:
    rows = [(*ROWS[0][:4], "a reason of many words " * 8)]
    lines = drawn(Table(HEADERS, rows, spare=("file",)), 80)
    assert "encoder 1664x928" in lines[2]
    assert " ".join(" ".join(lines[2:-1]).split()).count("a reason of") == 8


def test_parity_at_80_columns_is_one_line_a_row() -> None:
    """Of the columns named to go each is there: one that was renamed would stay for ever."""
    from qvae_trt.cli.commands.measuring import draw
    from qvae_trt.verify import VerifyReport
    from qvae_trt.verify.report import ParityRow

    row = ParityRow(
        engine="static/1328x1328/vae_encoder.trt", part="encoder", mode="static", status="passed",
        resolution=Resolution.parse("1328x1328"), input="photograph", output="logvar",
    )  # fmt: skip
    lines = drawn(draw(VerifyReport(rows=(row,) * 3, facts={})), 80)
    assert sum(line.startswith("static encoder") for line in lines) == 3
    assert "No room for max abs, rel L2, cosine" in lines[-2]


def test_what_got_worse_is_told_without_colour() -> None:
    lines = drawn(comparison_table(compare(result(), result(scale=1.5))), 100)
    rows = [line for line in lines if "%" in line and "margin" not in line]
    assert len(rows) == 20
    assert {tuple(line.split()[-3:]) for line in rows} == {("+50.0", "%", "worse")}
    lines = drawn(comparison_table(compare(result(), result(scale=0.5))), 100)
    assert sum(line.endswith(" better") for line in lines) == 20


@pytest.mark.parametrize("line", ["profiles list", "profiles match 1600x1200", "doctor"])
def test_the_table_is_drawn_from_what_json_prints(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is shown that `--json` lacks."""
    cli.main([*line.split(), "--json"])
    printed = json.loads(capsys.readouterr().out)
    shown = []
    monkeypatch.setattr(output, "emit", lambda _, draw: shown.append(drawn(draw(printed), 200)))
    cli.main(line.split())
    assert len(shown[0]) > 3


@pytest.mark.parametrize("columns", ["0", "-5", "", "wide"])
@pytest.mark.parametrize("terminal", [False, True])
def test_columns_that_are_no_width_count_as_unset(
    columns: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", columns)
    assert output.console(file).width >= 80
    monkeypatch.setenv("COLUMNS", "42")
    assert output.console(file).width == 42
