"""Exit codes, streams and signals: what every command does alike."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from qvae_trt import errors
from qvae_trt.cli import boundary, output


@pytest.fixture(autouse=True)
def fresh_settings() -> None:
    output.settings.as_json = output.settings.verbose = False


def raising(error: BaseException) -> Callable[[], object]:
    def command() -> object:
        raise error

    return command


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tracebacks of bugs are left."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


class OutOfMemoryError(RuntimeError):
    """Called as torch's is."""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (errors.QvaeError("it broke", fix="mend it"), 1, "error: it broke\nmend it\n"),
        (errors.ParityError("a bound"), 1, "error: a bound\n"),
        (errors.UsageError("wrong"), 2, "error: wrong\n"),
        (errors.ResolutionError("no size"), 2, "error: no size\n"),
        (typer.BadParameter("five"), 2, "error: Invalid value: five\nsee: qvae --help\n"),
        (typer.Exit(1), 1, ""),
        (typer.Abort(), 130, "interrupted\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            OutOfMemoryError("CUDA out of memory"),
            1,
            "error: out of memory on the GPU: CUDA out of memory\n",
        ),
        (MemoryError(), 1, "error: out of memory on the host\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "engines/x"),
            1,
            "error: engines/x: No space left on device\nfree some space, or name another folder\n",
        ),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_exit_code_and_message(
    error: BaseException, code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(raising(error)) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(words)
    assert "Traceback" not in shown.err


def test_a_command_may_return_its_exit_code() -> None:
    assert boundary.run(lambda: 1) == 1
    assert boundary.run(lambda: None) == 0


def test_a_bug_is_3_and_leaves_its_traceback_in_a_file(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(raising(ZeroDivisionError("oh"))) == 3
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: oh" in shown
    assert "Traceback" not in shown
    (log,) = (logs / "state" / "qvae").iterdir()
    assert str(log) in shown
    assert "in command" in log.read_text()


def test_a_bug_with_text_that_no_file_holds_leaves_it_escaped(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert boundary.run(raising(ZeroDivisionError("oh \ud800"))) == 3
    (log,) = (logs / "state" / "qvae").iterdir()
    assert "oh \\ud800" in log.read_text()
    assert str(log) in capsys.readouterr().err


def test_a_bug_where_the_folder_for_it_cannot_be_written(
    logs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (logs / "state").write_text("a file in its place")
    assert boundary.run(raising(ZeroDivisionError("oh"))) == 3
    (log,) = (logs / "temporary").iterdir()
    assert str(log) in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "tempdir", str(logs / "nowhere"))
    assert boundary.run(raising(ZeroDivisionError("oh"))) == 3
    assert "--verbose shows where" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("oh"), errors.QvaeError("expected")])
def test_verbose_shows_where(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    output.set_verbose(True)
    boundary.run(raising(error))
    assert "Traceback" in capsys.readouterr().err


def test_emit_prints_json_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    output.set_json(True)
    output.emit({"a": math.nan, "b": [math.inf, 1], "c": {"é": None}}, lambda _: "drawn")
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1], "c": {"é": None}}


def test_emit_draws(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit({"a": 1}, lambda _: "drawn")
    assert capsys.readouterr().out == "drawn\n"


def test_prints_of_libraries_stay_out_of_results(capsys: pytest.CaptureFixture[str]) -> None:
    with output.results_only():
        print("a library says")
        output.emit({}, lambda _: "result")
    shown = capsys.readouterr()
    assert shown.out == "result\n"
    assert shown.err == "a library says\n"


def python(code: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_native_prints_stay_out_of_results() -> None:
    code = """
import os
from qvae_trt.cli import output
with output.streams(), output.results_only():
    os.write(1, b"TensorRT says\\n")
    output.emit({}, lambda _: "result")
os.write(1, b"after\\n")
"""
    out, err = python(code).communicate(timeout=60)
    assert out == "result\nafter\n"
    assert err == "TensorRT says\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_unwind(number: signal.Signals) -> None:
    # A shell starts what it puts into the background with SIGINT ignored.
    code = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from qvae_trt.cli import boundary
def command():
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned", flush=True)
sys.exit(boundary.run(command))
"""
    process = python(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "cleaned\n"
    assert err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["profiles"], ["profiles", "--json"], ["--help"]])
def test_a_reader_that_leaves_is_no_failure(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "qvae_trt", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert ran.stderr == ""
    assert ran.returncode == 0


@pytest.mark.parametrize("arguments", [["profiles"], ["profiles", "--json"], ["--help"]])
def test_a_full_disk_under_the_results_is_a_failure_in_words(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "qvae_trt", *arguments],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: No space left on device\nfree some space, or name another folder\n"
    )


CLOSED = [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("words", ["profiles", "profiles list --json"])
def test_closed_streams_do_no_harm(words: str, closed: str) -> None:
    ran = subprocess.run(
        f"{sys.executable} -m qvae_trt {words} {closed}",
        shell=True,
        check=False,
        capture_output=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert b"bug" not in ran.stderr


@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_with_closed_streams_does_its_work(closed: str, tmp_path: Path) -> None:
    """And what it or a library prints is in no file that it has opened."""
    code = f"""
import os, sys
from pathlib import Path
from qvae_trt.cli import boundary, output
def command():
    with output.results_only(), Path({str(tmp_path / "file")!r}).open("w") as file:
        output.tell("told")
        os.write(1, b"native")
        os.write(2, b"native")
        print("printed")
        output.emit({{}}, lambda _: "result")
        sys.stdin.read()
        file.write("content")
with output.streams():
    code = boundary.run(command)
Path({str(tmp_path / "code")!r}).write_text(str(code))
"""
    (tmp_path / "run.py").write_text(code)
    subprocess.run(
        f"{sys.executable} {tmp_path / 'run.py'} {closed}",
        shell=True,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert (tmp_path / "code").read_text() == "0"
    assert (tmp_path / "file").read_text() == "content"
