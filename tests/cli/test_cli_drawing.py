"""What a person reads on a terminal: tables that fit it, estimates, a way on."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bench_samples import result
from rich.console import Console

from qvae_trt.backends import devices
from qvae_trt.bench import compare
from qvae_trt.build import JobResult, plan_profiles, plan_static
from qvae_trt.cli import app as cli
from qvae_trt.cli import estimate, output
from qvae_trt.cli.bench_tables import comparison_table
from qvae_trt.cli.commands import build
from qvae_trt.cli.drawing import table
from qvae_trt.cli.estimate import Measured, measured_like
from qvae_trt.profiles import Resolution, load_profiles

HEADERS = ("", "engine", "file", "MiB", "why")
FILE = "engines/static/1664x928/vae_encoder.trt"
ROWS = [("planned", "encoder 1664x928", FILE, "41.2", "because")]


def drawn(shown: object, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width).print(shown)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_table_with_room_has_every_column() -> None:
    lines = drawn(table(HEADERS, ROWS, spare=("file",)), 100)
    assert lines[-1].split("   ")[2] == FILE


def test_a_narrow_table_leaves_out_what_may_go_and_says_so() -> None:
    lines = drawn(table(HEADERS, ROWS, spare=("file", "MiB")), 60)
    assert lines[0].split() == ["engine", "MiB", "why"]
    assert lines[2].split("   ") == ["planned", "encoder 1664x928", "41.2", "because"]
    assert lines[3].startswith("No room for file:")


def test_a_table_too_narrow_for_anything_loses_no_text() -> None:
    lines = drawn(table(HEADERS, ROWS), 40)
    assert max(map(len, lines)) <= 40
    text = "".join("".join(line.split()) for line in lines)
    assert "…" not in text
    assert all(part in text for part in ("because", "41.2"))


def test_long_reasons_wrap_and_cost_no_column() -> None:
    rows = [(*ROWS[0][:4], "a reason of many words " * 8)]
    lines = drawn(table(HEADERS, rows, spare=("file",)), 80)
    assert "encoder 1664x928" in lines[2]
    assert " ".join(" ".join(lines[2:-1]).split()).count("a reason of") == 8


def test_parity_at_80_columns_is_one_line_a_row() -> None:
    """Of the columns named to go each is there: one that was renamed would stay for ever."""
    from qvae_trt.cli.commands.verify import draw
    from qvae_trt.verify import VerifyReport
    from qvae_trt.verify.report import ParityRow

    row = ParityRow(
        engine="static/1328x1328/vae_encoder.trt", part="encoder", mode="static", status="passed",
        resolution=Resolution.parse("1328x1328"), input="photograph", output="logvar",
    )  # fmt: skip
    lines = drawn(draw(VerifyReport(rows=(row,) * 3, facts={}).to_dict()), 80)
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


# --- how large, how long -------------------------------------------------------------------------


def measured(**changes: object) -> Measured:
    facts = {"flavour": "tensorrt", "flavour_version": "8.6.1", "gpu": "NVIDIA H200"}
    facts |= {"part": "decoder", "mode": "static", "size": "1328x1328"}
    return Measured(**{**facts, "seconds": 180.0, "bytes": 60 * 2**20, **changes})  # type: ignore[arg-type]


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (
        measured(),
        measured(size="512x512", seconds=60.0),
        measured(mode="profiles", size=None, seconds=900.0),
        measured(flavour="tensorrt_rtx", seconds=9.0),
    )
    monkeypatch.setattr(estimate, "_measured", lambda: rows)


@pytest.mark.parametrize(
    ("flavour", "size", "seconds"),
    [
        ("tensorrt", "1664x928", 180.0),
        ("tensorrt", "640x480", 60.0),
        ("tensorrt_rtx", "640x480", 9.0),
        ("onnxruntime", "640x480", None),
    ],
)
def test_the_nearest_that_was_measured(
    known: None, flavour: str, size: str, seconds: float | None
) -> None:
    (encoder, decoder) = plan_static(Path("engines"), [Resolution.parse(size)])
    assert measured_like(encoder, flavour) is None
    found = measured_like(decoder, flavour)
    assert (None if found is None else found.seconds) == seconds


def test_profiles_are_not_judged_by_static_engines(known: None) -> None:
    (_, decoder) = plan_profiles(Path("engines"), load_profiles())
    found = measured_like(decoder, "tensorrt")
    assert found is not None
    assert found.seconds == 900.0


def test_a_dry_run_says_about_how_long_and_on_what(known: None) -> None:
    jobs = plan_static(Path("engines"), [Resolution.parse(s) for s in ("1664x928", "640x480")])
    results = [JobResult(job, "planned", "not built yet") for job in jobs]
    text = "\n".join(drawn(build.draw({"engines": build.plain(results, "tensorrt")}), 80))
    assert "~180.0" in text
    assert "~60.0" in text
    assert "NVIDIA H200 with tensorrt 8.6.1" in text
    assert "~ 4 min and 120 MiB in all" in text


def test_what_was_built_here_is_no_estimate(known: None) -> None:
    (job,) = plan_static(Path("engines"), [Resolution.parse("1664x928")], ("decoder",))
    results = [JobResult(job, "planned", "stale", seconds=12.0, engine_bytes=2**20)]
    assert "~" not in "\n".join(
        drawn(build.draw({"engines": build.plain(results, "tensorrt")}), 80)
    )


def test_the_file_of_what_was_measured_is_read() -> None:
    assert all(row.seconds > 0 and row.bytes > 0 for row in estimate._measured())
    assert {row.part for row in estimate._measured()} <= {"encoder", "decoder"}


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("qvae prof", ["profiles"]),
        ("qvae build --mo", ["--mode", "--model"]),
        ("qvae build --mode ", ["static", "profiles"]),
        ("qvae build --aspect 4", ["4:3"]),
        ("qvae bench --baseline f", ["folded", "fused"]),
    ],
)
def test_a_shell_is_offered_words(words: str, offered: list[str]) -> None:
    asked = {"_QVAE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    asked["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    code = "from qvae_trt.cli.app import main; raise SystemExit(main([]))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | asked, capture_output=True, text=True
    )
    assert ran.stdout.split() == offered, ran.stderr


# --- a way on ------------------------------------------------------------------------------------


def test_auto_on_a_gpu_without_tensorrt_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = devices.Device("NVIDIA GeForce RTX 5090", "12.0", 34_000_000_000, "580.95.05")
    monkeypatch.setattr(devices, "gpus", lambda: (card,))
    monkeypatch.setattr("qvae_trt.backends.resolve", lambda name: "onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["profiles", "match", "512x512"]) == 0
    assert "--backend auto is onnxruntime here" in capsys.readouterr().err
    assert cli.main(["profiles", "match", "512x512", "--backend", "onnxruntime"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_match_names_the_build_that_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--engine-dir", str(tmp_path), "--backend", "onnxruntime"]
    assert cli.main(["profiles", "match", "512x512", *where]) == 0
    assert "qvae build --mode static --resolution 512x512" in capsys.readouterr().err


def test_inspect_of_a_folder_names_an_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "static" / "64x64"
    folder.mkdir(parents=True)
    (folder / "vae_decoder.onnx").write_bytes(b"")
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert f"qvae inspect {folder / 'vae_decoder.onnx'}" in capsys.readouterr().err


def test_inspect_of_an_empty_folder_names_a_build_that_can_be_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 1
    assert f"\nqvae build --mode static --engine-dir {tmp_path}\n" in capsys.readouterr().err


def test_inspect_fits_a_screen_and_verbose_has_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    where = ["--model", "bundled:tiny", "--backend", "onnxruntime"]
    size = ["--resolution", "64x64", "--part", "decoder"]
    assert cli.main(["build", "--mode", "static", *size, *where]) == 0
    sidecar = Path("engines/static/64x64/vae_decoder.onnx.json")
    capsys.readouterr()
    assert cli.main(["inspect", str(sidecar)]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 52
    assert "latents, float16, 1x16x1x8x8" in short
    assert cli.main(["inspect", str(sidecar), "--verbose"]) == 0
    long = capsys.readouterr().out
    weights = json.loads(sidecar.read_text())["key"]["weights_sha256"]
    assert weights in long
    assert weights not in short
    assert len(long.splitlines()) > 2 * len(short.splitlines())
