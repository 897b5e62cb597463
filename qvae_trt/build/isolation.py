"""Work in a process of its own: started, listened to, and ended with its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import IO, TYPE_CHECKING, Any

from qvae_trt import errors
from qvae_trt.backends import BuildOutcome, TensorSpec
from qvae_trt.errors import BuildError, QvaeError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from qvae_trt.backends import BuildSpec, Progress

# The parent's search path goes along as data, as it may hold what no environment variable can.
_START = (
    "import importlib, json, sys; request = json.loads(sys.stdin.readline()); "
    "sys.path[:] = request['sys_path']; module, name = request['task'].split(':'); "
    "getattr(importlib.import_module(module), name)(request)"
)
_LAST_WORDS_BYTES = 2000


def build_in_child(
    backend: str, onnx: Path, out: Path, spec: BuildSpec, *, progress: Progress
) -> BuildOutcome:
    """`Backend.build` in a new process, with the same results and errors.

    Raises: whatever the backend raised; BuildError, naming the signal, if the process died.
        KeyboardInterrupt if `progress` said stop. However this ends, the process is gone.
    """
    request = {"backend": backend, "onnx": str(onnx), "out": str(out), "spec": asdict(spec)}
    return _outcome(
        call_in_child(
            "qvae_trt.build.child:serve",
            request,
            progress=progress,
            name="build",
            makes="engine",
            fix="qvae doctor; if it happens again, try --level 2 or a smaller size",
        )
    )


def call_in_child(
    task: str,
    request: Mapping[str, object],
    *,
    progress: Progress,
    name: str,
    makes: str,
    fix: str,
) -> dict[str, Any]:
    """Call `task` (`module:function`) with a request in a new process; it calls `child.answer`.

    Args:
        request: JSON-ready, paths as text.
        name, makes, fix: of the work and its result, for the error if the process dies.

    Returns: what the task answered.
    Raises: the QvaeError that the task raised; BuildError, naming the signal, if the process died.
        KeyboardInterrupt if `progress` said stop. However this ends, the process is gone.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as events, tempfile.TemporaryFile() as words:
        try:
            child = _start(writing, words)
        finally:
            os.close(writing)
        try:
            _ask(child, {**request, "task": task, "name": name, "events": writing})
            answer = _listen(events, progress)
            child.wait()
        finally:
            child.kill()  # nothing to lose: it writes to temporary files only
            child.wait()
        if answer is not None:
            return answer
        how = _how_it_died(child.returncode, makes)
        raise BuildError(f"the {name} process {how}{_last_words(words)}", fix=fix)


def _start(writing: int, words: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START],
        stdin=subprocess.PIPE,
        stdout=words,
        stderr=subprocess.STDOUT,
        pass_fds=(writing,),
    )


def _ask(child: subprocess.Popen[bytes], request: dict[str, object]) -> None:
    request |= {
        "sys_path": [entry or os.getcwd() for entry in sys.path],  # noqa: PTH109
        "parent": os.getpid(),
    }
    if child.stdin is None:
        raise BuildError("the process takes no request")
    try:
        child.stdin.write(json.dumps(request, default=str).encode() + b"\n")
        child.stdin.close()
    except BrokenPipeError:
        return  # it died at once: the caller finds no outcome and says how


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
        else:
            answer: dict[str, Any] = event["outcome"]
            return answer
    return None


def _error(event: dict[str, str | None]) -> QvaeError:
    kind = getattr(errors, str(event["type"]), BuildError)
    if not (isinstance(kind, type) and issubclass(kind, QvaeError)):
        kind = BuildError
    return kind(str(event["what"]), fix=event["fix"])


def _outcome(held: dict[str, Any]) -> BuildOutcome:
    source, result = (
        TensorSpec(held[way]["name"], held[way]["dtype"], tuple(held[way]["shape"]))
        for way in ("input", "output")
    )
    return BuildOutcome(
        held["flags"], held["seconds"], source, result, warnings=tuple(held["warnings"])
    )


def _how_it_died(status: int, makes: str) -> str:
    if status >= 0:
        return f"ended with exit code {status} and no {makes}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of host memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _last_words(words: IO[bytes]) -> str:
    words.seek(0, os.SEEK_END)
    words.seek(max(0, words.tell() - _LAST_WORDS_BYTES))
    text = words.read().decode(errors="replace").strip()
    lines = [line for line in text.splitlines() if line.strip()][-5:]
    return f": {' | '.join(lines)}" if lines else ""
