"""The one place where exceptions become exit codes.

0 done; 1 an expected failure; 2 wrong usage; 3 a bug; 130 interrupted (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from qvae_trt import interrupts
from qvae_trt.cli import output
from qvae_trt.errors import expected
from qvae_trt.workers import ChildError

DONE, FAILED, USAGE, BUG, INTERRUPTED = 0, 1, 2, 3, 130

# What Typer raises for a wrong command line. Its home differs between releases (click's, or a copy
# inside Typer); the public BadParameter descends from it in all of them.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every word about a failure goes to stderr."""
    try:
        with interrupts.delivered():
            return _run(command)
    except KeyboardInterrupt:
        return _interrupted()


def _run(command: Callable[[], object]) -> int:
    try:
        result = command()
        if interrupts.requested():  # whatever became of the KeyboardInterrupt
            raise KeyboardInterrupt
    except Exception as error:  # this is the boundary
        if interrupts.requested():
            raise KeyboardInterrupt from error
        return _failed(error)
    if result == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt
        raise KeyboardInterrupt
    return result if isinstance(result, int) else DONE


def _failed(error: Exception) -> int:
    match error:
        case typer.Exit():
            return int(error.exit_code)
        case typer.Abort():
            return _interrupted()
        case ClickException():
            return _usage(error)
        case BrokenPipeError():
            output.mute(sys.stdout)
            return DONE
    failure = expected(error)
    if failure is None:
        return _bug(error)
    return _say(failure.what, fix=failure.fix, code=failure.exit_code)


def _interrupted() -> int:
    interrupts.settle()
    output.tell("interrupted", style="bold red")
    return INTERRUPTED


def _say(what: str, *, code: int, fix: str | None = None) -> int:
    output.tell(f"error: {what}", style="bold red")
    if fix is not None:
        output.tell(fix)
    if output.settings.verbose:
        output.tell(traceback.format_exc())
    return code


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        output.tell(error.format_message())
        return USAGE
    context = getattr(error, "ctx", None)
    path = "qvae" if context is None else context.command_path
    words = error.format_message().replace("Value error, ", "")
    line = getattr(error, "instead", None)
    return _say(words, fix=f"try: {line}" if line else f"see: {path} --help", code=error.exit_code)


def _bug(error: Exception) -> int:
    words = str(error) if isinstance(error, ChildError) else f"{type(error).__name__}: {error}"
    output.tell(f"bug in qvae: {words}", style="bold red")
    trace = traceback.format_exc()
    if output.settings.verbose:
        output.tell(trace)
    output.tell(f"{_kept(trace)}please report it with the output of: qvae doctor --json")
    return BUG


def _kept(trace: str) -> str:
    """Write the traceback of a bug to a log file and say where it is, so that a build of an hour
    need not be repeated to see it.
    """
    for folder in (_state_folder(), None):  # None: of temporary files
        with contextlib.suppress(OSError):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "wb", prefix="qvae-bug-", suffix=".log", dir=folder, delete=False
            ) as file:
                text = f"{output.settings.command}\n\n{trace}"
                file.write(text.encode(errors="backslashreplace"))
            return f"its traceback is in {file.name}; "
    return "the same command with --verbose shows where; "


def _state_folder() -> Path | None:
    """The folder for what a user's programs leave behind: in `XDG_STATE_HOME`, by default
    ~/.local/state.
    """
    given = Path(os.environ.get("XDG_STATE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # a user without a home
        return (given if given.is_absolute() else Path.home() / ".local" / "state") / "qvae"
    return None
