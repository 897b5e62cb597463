"""Signals that arrive where Python or a library drops their KeyboardInterrupt."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import os, signal, sys, time, weakref
signal.signal(signal.SIGINT, signal.default_int_handler)
from qvae_trt.cli import boundary
from qvae_trt.errors import BackendError

class Thing:
    pass

def interrupt(*_):
    os.kill(os.getpid(), NUMBER)
    for _ in range(1000):
        pass

def dropped():
    thing = Thing()
    reference = weakref.ref(thing, interrupt)
    del thing
"""
END = "\nsys.exit(boundary.run(command))"


def ran(command: str, number: int = signal.SIGINT) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and seconds of a command."""
    begin = time.monotonic()
    code = START.replace("NUMBER", str(int(number))) + command + END
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begin


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_a_callback_drops_is_raised_again(number: int) -> None:
    command = """
def command():
    dropped()
    print("went on", flush=True)
    time.sleep(30)
"""
    status, out, err, seconds = ran(command, number)
    assert (status, out, err) == (130, "went on\n", "interrupted\n")
    assert seconds < 20


def test_a_command_that_ends_at_the_signal_counts_as_interrupted() -> None:
    status, _, err, _ = ran("def command():\n    dropped()\n")
    assert (status, err) == (130, "interrupted\n")


def test_an_import_that_an_interrupt_broke_is_no_failed_import() -> None:
    command = """
def command():
    try:
        interrupt()
    except KeyboardInterrupt:
        pass
    raise BackendError("onnxruntime does not import", fix="pip install onnxruntime")
"""
    status, _, err, _ = ran(command)
    assert (status, err) == (130, "interrupted\n")


def test_what_c_code_prints_of_it_is_not_shown() -> None:
    command = """
def command():
    try:
        interrupt()
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())  # as PyErr_Print does
    time.sleep(30)
"""
    status, _, err, _ = ran(command)
    assert (status, err) == (130, "interrupted\n")


def test_cleaning_up_is_not_interrupted_again() -> None:
    command = """
def command():
    try:
        interrupt()
    finally:
        try:
            raise OSError("a clean-up has failures of its own")
        except OSError:
            time.sleep(0.5)
        time.sleep(0.5)
        print("cleaned", flush=True)
"""
    status, out, err, _ = ran(command)
    assert (status, out, err) == (130, "cleaned\n", "interrupted\n")


def test_a_shells_background_ignores_ctrl_c() -> None:
    command = """
def command():
    interrupt()
    print("done", flush=True)
"""
    code = START.replace("signal.default_int_handler", "signal.SIG_IGN").replace("NUMBER", "2")
    done = subprocess.run(
        [sys.executable, "-c", code + command + END], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_an_interrupt_in_code_that_a_library_executes(tmp_path: Path) -> None:
    """Python ends by the signal then, although the interrupt was handled, and not with 130."""
    (tmp_path / "typer.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))\n"
        "exec('os.kill(os.getpid(), signal.SIGINT)\\nfor _ in range(1000): pass')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "qvae_trt", "profiles"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal, as the kernel has it."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


BUILD = [sys.executable, "-m", "qvae_trt", "build", "--mode", "static", "--resolution", "32x32"]
BUILD += ["--part", "decoder", "--precision", "fp32", "--force", "--model", "bundled:tiny"]
BUILD += ["--backend", "onnxruntime"]


@pytest.mark.slow
def test_a_build_is_interrupted_at_any_moment(tmp_path: Path) -> None:
    """From the moment on at which the handlers are set, most of it while importing."""
    begin = time.monotonic()
    subprocess.run([*BUILD, "--engine-dir", tmp_path], check=True, capture_output=True)
    longest = time.monotonic() - begin
    seed = random.SystemRandom().randrange(1 << 32)
    moments = random.Random(seed)
    interrupted = 0
    while interrupted < 50:
        delay = moments.uniform(0, longest)
        by = moments.choice([signal.SIGINT, signal.SIGTERM])
        process = subprocess.Popen(
            [*BUILD, "--engine-dir", tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not catches(process.pid, signal.SIGTERM):
            time.sleep(0.001)
        try:
            out, err = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, by)
            out, err = process.communicate(timeout=120)
        if process.returncode in (0, -by) and "1 built" in out:  # it was done, or as good as
            longest = delay
            continue
        interrupted += 1
        where = f"seed {seed}, {by.name} after {delay:.3f} s: {err}"
        assert (process.returncode, out) == (130, ""), where
        assert err.splitlines()[-1] == "interrupted", where
        assert "Traceback" not in err, where
        assert "ignored" not in err, where
