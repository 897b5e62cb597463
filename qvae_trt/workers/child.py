"""The body of another process: request after request, until its parent ends or the work fails."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from qvae_trt.errors import QvaeError, os_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvae_trt.progress import Progress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECONDS_BETWEEN = 0.1


def answer(request: dict[str, Any], work: Callable[[dict[str, Any], Progress], object]) -> None:
    """Does the work and writes events, one JSON object a line, to the request's descriptor; then
    the next request from standard input, until that ends or the work fails.

    Args:
        work: what to do with the request; returns the outcome, ready for JSON.
    """
    _die_with(request["parent"])
    with os.fdopen(request["events"], "w", encoding="utf-8", buffering=1) as events:

        def say(**event: object) -> None:
            events.write(json.dumps(event) + "\n")

        while _answered(request, work, say):
            line = sys.stdin.readline()
            if not line:
                break
            request = json.loads(line)


def _answered(
    request: dict[str, Any],
    work: Callable[[dict[str, Any], Progress], object],
    say: Callable[..., None],
) -> bool:
    try:
        outcome = work(request, _Throttle(say))
    except QvaeError as error:
        say(kind="error", type=type(error).__name__, what=error.what, fix=error.fix)
    except MemoryError:
        say(kind="error", type="BuildError", what="out of memory on the host", fix=None)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except OSError as error:
        say(kind="error", type="StoreError", what=os_words(error), fix=None)
    except Exception as error:  # noqa: BLE001  the boundary of this process
        what = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be here
            say(kind="error", type="DeviceMemoryError", what=what, fix=None)
        else:
            say(kind="bug", what=what, trace=traceback.format_exc())
    else:
        say(kind="done", outcome=outcome)
        return True
    return False


class _Throttle:
    """Progress at most ten times a second, since TensorRT reports thousands of steps; but every
    beginning and end.
    """

    def __init__(self, say: Any) -> None:
        self._say = say
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> bool:
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN or done in (0, total):
            self._last = now
            self._say(kind="progress", stage=stage, done=done, total=total)
        return True


def _die_with(parent: int) -> None:
    """Ends this process when its parent ends, however that happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        sys.exit(1)
