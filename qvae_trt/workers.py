"""Work in another process: started, listened to, and ended with its parent.

Requests and events go through a pipe. What libraries print there goes to a file, whose last lines
are in the error if the process dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Self

from qvae_trt.errors import BuildError, expected
from qvae_trt.progress import Progress

# The parent's search path comes first, as it may hold what no environment variable can.
_START = """
import sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[2]))
sys.path[:] = pipe.recv()
from qvae_trt.workers import serve
serve(int(sys.argv[1]), pipe)
"""
_LAST_WORDS_BYTES = 2000
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS_BETWEEN = 0.1


class ChildError(Exception):
    """A bug in another process. Its note is the traceback from there."""


# --- the parent ---------------------------------------------------------------------------------


class Child:
    """A process that does one request after the other; it starts with the first.

    What a library loaded and compiled for one request serves the next: TensorRT 8.6 builds its
    second engine in a fraction of the first one's time. After an error or an interruption the
    process is gone, and the next request starts another.

    Args:
        name, makes, fix: of the work and its result, for the error if the process dies.
    """

    def __init__(self, name: str, *, makes: str, fix: str) -> None:
        self._name, self._makes, self._fix = name, makes, fix
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, task: Callable[..., Any], *arguments: Any, progress: Progress) -> Any:
        """What a function of a module returns in that process, called with the arguments and
        `progress`.

        Raises: the QvaeError that the task raised; BuildError, naming the signal, if the process
            died or cannot start; ChildError for any other error there. What `progress` raises
            ends the process.
        """
        self.ask(task, *arguments)
        return self.answer(progress)

    def ask(self, task: Callable[..., Any], *arguments: Any) -> None:
        """The first half of `call`: the work begins."""
        if self._running is not None and self._running.process.poll() is not None:
            self.close()  # it was killed between two requests: the next one is not to blame
        try:
            if self._running is None:
                self._running = _Running()
            self._running.send((task, arguments))
        except OSError as error:
            self.close()
            raise BuildError(
                f"the {self._name} process cannot start: {error.strerror}",
                fix="close other programs",
            ) from error
        except BaseException:
            self.close()
            raise

    def answer(self, progress: Progress) -> Any:
        """The second half of `call`: wait until the work is done."""
        if self._running is None:
            raise RuntimeError("nothing was asked")
        try:
            for kind, *event in self._running.events():
                if kind == "done":
                    self._running.forget_words()
                    return event[0]
                if kind == "error":
                    raise event[0]
                progress(*event)
            how = _how_it_died(self._running.process.wait(), self._makes)
            what = f"the {self._name} process {how}{self._running.last_words()}"
            raise BuildError(what, fix=self._fix)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
            self._running = None


class _Running:
    """The process behind a `Child`, and the way to and from it."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as opened:
            self._words = opened.enter_context(tempfile.TemporaryFile())
            self._pipe, theirs = Pipe()
            opened.enter_context(self._pipe)
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _START, str(os.getpid()), str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._words,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                )
            self._opened = opened.pop_all()
        self.send([entry or os.getcwd() for entry in sys.path])  # noqa: PTH109

    def send(self, message: object) -> None:
        # Where it died at once, the caller finds no outcome and says how.
        with contextlib.suppress(ConnectionError):
            self._pipe.send(message)

    def events(self) -> Iterator[tuple[Any, ...]]:
        """Until the process ends."""
        with contextlib.suppress(EOFError, OSError):  # OSError: cut short by its death
            while True:
                yield self._pipe.recv()

    def forget_words(self) -> None:
        """What was printed until now is no part of the next request."""
        self._words.seek(0)
        self._words.truncate()

    def last_words(self) -> str:
        """What it printed last, since the request before."""
        self._words.seek(max(0, self._words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
        text = self._words.read().decode(errors="replace").strip()
        lines = [line for line in text.splitlines() if line.strip()][-5:]
        return f": {' | '.join(lines)}" if lines else ""

    def end(self) -> None:
        self.process.kill()  # nothing to lose: it writes to temporary files only
        self.process.wait()
        self._opened.close()


def _how_it_died(status: int, makes: str) -> str:
    if status >= 0:
        return f"ended with exit code {status} and no {makes}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of host memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


# --- the child ----------------------------------------------------------------------------------


def serve(parent: int, pipe: Connection) -> None:
    """The body of that process: request after request, until `parent` ends or one fails."""
    _die_with(parent)
    with contextlib.suppress(EOFError):
        while _answered(pipe, *pipe.recv()):
            pass


def _answered(pipe: Connection, task: Callable[..., Any], arguments: Any) -> bool:
    def say(*event: object) -> None:
        pipe.send(event)  # in one write: builders report from threads of their own

    try:
        outcome = task(*arguments, progress=_throttled(say))
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except Exception as error:  # noqa: BLE001  the boundary of this process
        failure: Exception | None = expected(error)
        if failure is None:
            failure = ChildError(f"{type(error).__name__}: {error}")
            failure.add_note(traceback.format_exc())
        say("error", failure)
    else:
        say("done", outcome)
        return True
    return False


def _throttled(say: Callable[..., None]) -> Progress:
    """Progress at most ten times a second, since TensorRT reports thousands of steps; but every
    beginning and end.
    """
    last = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _SECONDS_BETWEEN or done in (0, total):
            last = now
            say("progress", stage, done, total)

    return progress


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)
