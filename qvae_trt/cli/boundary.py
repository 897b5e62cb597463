"""The one place where exceptions become exit codes.

0 done; 1 an expected failure; 2 wrong usage; 3 a bug; 130 interrupted (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING, Any

import typer

from qvae_trt.cli import output
from qvae_trt.errors import QvaeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

DONE, FAILED, USAGE, BUG, INTERRUPTED = 0, 1, 2, 3, 130

# What Typer raises for a wrong command line. Its home differs between releases (click's, or a copy
# inside Typer); the public BadParameter descends from it in all of them.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit code; every word about a failure goes to stderr."""
    with _sigterm_interrupts():
        try:
            result = command()
        except typer.Exit as stop:
            return int(stop.exit_code)
        except (KeyboardInterrupt, typer.Abort):
            return _interrupted()
        except _ClickException as error:
            return _usage(error)
        except QvaeError as error:
            return _say(error.what, fix=error.fix, code=error.exit_code)
        except BrokenPipeError:
            output.mute(sys.stdout)
            return DONE
        except OSError as error:
            return _say(_os_words(error), fix=_os_fix(error), code=FAILED)
        except MemoryError:
            return _say(
                "out of memory on the host",
                fix="close other programs, or use a smaller --resolution",
                code=FAILED,
            )
        except Exception as error:  # noqa: BLE001  this is the boundary
            if _is_device_memory(error):
                return _say(
                    "out of memory on the GPU",
                    fix="close other programs on it, or use a smaller --resolution",
                    code=FAILED,
                )
            return _bug(error)
    if result == INTERRUPTED:  # Typer makes this of a KeyboardInterrupt
        return _interrupted()
    return result if isinstance(result, int) else DONE


def _interrupted() -> int:
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
    return _say(words, fix=f"see: {path} --help", code=error.exit_code)


def _bug(error: Exception) -> int:
    output.tell(f"bug in qvae: {type(error).__name__}: {error}", style="bold red")
    if output.settings.verbose:
        output.tell(traceback.format_exc())
    else:
        output.tell(
            "the same command with --verbose shows where; "
            "please report it with the output of: qvae doctor --json"
        )
    return BUG


def _os_words(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{error.strerror or error}"


def _os_fix(error: OSError) -> str | None:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "free some space, or name another folder"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "name a folder that this user may write to, or change its permissions"
        case errno.ENOENT:
            return "check the path"
        case _:
            return None


def _is_device_memory(error: Exception) -> bool:
    # torch.OutOfMemoryError, without importing torch to name it.
    return type(error).__name__ == "OutOfMemoryError"


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does: what cleans up after one cleans up after the other."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
