"""Work in another process: started, listened to, and ended with its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from typing import IO, TYPE_CHECKING, Any, Self

from qvae_trt import errors
from qvae_trt.errors import BuildError, QvaeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qvae_trt.progress import Progress

# The parent's search path goes along as data, as it may hold what no environment variable can.
_START = (
    "import importlib, json, sys; request = json.loads(sys.stdin.readline()); "
    "sys.path[:] = request['sys_path']; module, name = request['task'].split(':'); "
    "getattr(importlib.import_module(module), name)(request)"
)
_LAST_WORDS_BYTES = 2000


class ChildError(Exception):
    """An error that no one expected, in another process. Its cause has the traceback there."""


class _TraceError(Exception):
    """A traceback of another process, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Child:
    """A process that does one request after the other; it starts with the first.

    What a library loaded and compiled for one request serves the next: TensorRT 8.6 builds its
    second engine in a fraction of the first one's time. After an error or an interruption the
    process is gone, and the next request starts another.

    Args:
        task: `module:function`, called with the first request.
        name, makes, fix: of the work and its result, for the error if the process dies.
    """

    def __init__(self, task: str, *, name: str, makes: str, fix: str) -> None:
        self._task = task
        self._name, self._makes, self._fix = name, makes, fix
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, request: Mapping[str, object], *, progress: Progress) -> dict[str, Any]:
        """What the task answers to a request, which is JSON-ready, paths as text.

        Raises: the QvaeError that the task raised; BuildError, naming the signal, if the process
            died or cannot start; ChildError for any other error there. KeyboardInterrupt if
            `progress` said stop.
        """
        self.ask(request)
        return self.answer(progress)

    def ask(self, request: Mapping[str, object]) -> None:
        """The first half of `call`: the work begins."""
        running = self._started()
        try:
            running.ask({**request, "task": self._task, "name": self._name})
        except BaseException:
            self.close()
            raise

    def answer(self, progress: Progress) -> dict[str, Any]:
        """The second half of `call`: wait until the work is done."""
        running = self._running
        if running is None:
            raise RuntimeError("nothing was asked")
        try:
            answer = _listen(running.events, progress)
            if answer is None:
                running.process.wait()
                how = _how_it_died(running.process.returncode, self._makes)
                raise BuildError(
                    f"the {self._name} process {how}{running.last_words()}", fix=self._fix
                )
        except BaseException:
            self.close()
            raise
        return answer

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running is not None:
            self._running.end()
            self._running = None

    def _started(self) -> _Running:
        if self._running is not None and self._running.process.poll() is not None:
            self.close()  # it was killed between two requests: the next one is not to blame
        if self._running is None:
            try:
                self._running = _Running()
            except OSError as error:
                raise BuildError(
                    f"the {self._name} process cannot start: {error.strerror}",
                    fix="close other programs",
                ) from error
        return self._running


class _Running:
    """The process behind a `Child`, and the ways to and from it."""

    def __init__(self) -> None:
        self._words = tempfile.TemporaryFile()  # noqa: SIM115  closed by `end`
        self._said_before = 0
        try:
            reading, self._writing = os.pipe()
        except BaseException:
            self._words.close()
            raise
        self.events = os.fdopen(reading, encoding="utf-8")
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START],
                stdin=subprocess.PIPE,
                stdout=self._words,
                stderr=subprocess.STDOUT,
                pass_fds=(self._writing,),
            )
        except BaseException:
            self.events.close()
            self._words.close()
            raise
        finally:
            os.close(self._writing)

    def ask(self, request: dict[str, object]) -> None:
        self._said_before = os.fstat(self._words.fileno()).st_size
        request |= {
            "sys_path": [entry or os.getcwd() for entry in sys.path],  # noqa: PTH109
            "parent": os.getpid(),
            "events": self._writing,
        }
        if self.process.stdin is None:
            raise BuildError("the process takes no request")
        try:
            self.process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # it died at once: the caller finds no outcome and says how

    def last_words(self) -> str:
        """What it printed last since it was asked."""
        end = self._words.seek(0, os.SEEK_END)
        self._words.seek(max(self._said_before, end - _LAST_WORDS_BYTES))
        text = self._words.read().decode(errors="replace").strip()
        lines = [line for line in text.splitlines() if line.strip()][-5:]
        return f": {' | '.join(lines)}" if lines else ""

    def end(self) -> None:
        self.process.kill()  # nothing to lose: it writes to temporary files only
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                self.process.stdin.close()
        self.events.close()
        self._words.close()


def _listen(events: IO[str], progress: Progress) -> dict[str, Any] | None:
    for line in events:
        try:
            event = json.loads(line)
        except ValueError:  # cut short by the child's death
            return None
        if event["kind"] == "progress":
            if not progress(event["stage"], event["done"], event["total"]):
                raise KeyboardInterrupt
        elif event["kind"] == "error":
            raise _error(event)
        elif event["kind"] == "bug":
            raise ChildError(event["what"]) from _TraceError(event["trace"])
        else:
            answer: dict[str, Any] = event["outcome"]
            return answer
    return None


def _error(event: dict[str, str | None]) -> QvaeError:
    kind = getattr(errors, str(event["type"]), BuildError)
    if not (isinstance(kind, type) and issubclass(kind, QvaeError)):
        kind = BuildError
    return kind(str(event["what"]), fix=event["fix"])


def _how_it_died(status: int, makes: str) -> str:
    if status >= 0:
        return f"ended with exit code {status} and no {makes}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of host memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
