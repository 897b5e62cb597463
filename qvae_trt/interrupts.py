"""Ctrl-C and SIGTERM, each as a KeyboardInterrupt that is not lost.

Python raises it wherever the program is: in a callback of the import system or in a `__del__` it is
printed and dropped, and a library that is being imported may make an ImportError of it. So it is
raised again until it is on its way out, and `requested` tells that there was one.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, SimpleNamespace
from typing import Any

_SECONDS_BETWEEN = 0.1


# Of this process: signals reach its main thread only.
_state = SimpleNamespace(is_active=False, was_requested=False)


def requested() -> bool:
    """Whether a signal came since the outermost `delivered` began."""
    return bool(_state.was_requested)


def settle() -> None:
    """The interrupt has arrived where it ends the command: it is not raised again."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """In this block SIGINT and SIGTERM are a KeyboardInterrupt that is raised until it arrives.

    A SIGINT that is ignored, as in a shell's background, stays ignored. Does nothing inside another
    such block, or in a thread that gets no signals.
    """
    if _state.is_active or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    unraisable, uncaught = sys.unraisablehook, sys.excepthook

    def quiet_unraisable(found: Any) -> None:
        if not _is_interrupt(found.exc_type):
            unraisable(found)

    def quiet_uncaught(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        if not _is_interrupt(kind):  # C code prints so what it drops
            uncaught(kind, value, trace)

    _state.is_active, _state.was_requested = True, False
    sys.unraisablehook, sys.excepthook = quiet_unraisable, quiet_uncaught
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN or number == signal.SIGTERM:
                signal.signal(number, _interrupt)
        yield
    finally:
        if _state.was_requested:
            settle()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook, sys.excepthook = unraisable, uncaught
        _state.is_active = False


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    _state.was_requested = True
    signal.signal(signal.SIGALRM, _interrupt_again)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS_BETWEEN, _SECONDS_BETWEEN)
    raise KeyboardInterrupt


def _interrupt_again(_signal: int, _frame: FrameType | None) -> None:
    """Unless it is on its way: what cleans up then is let be."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return
        error = error.__context__
    raise KeyboardInterrupt


def _is_interrupt(kind: type[BaseException] | None) -> bool:
    return kind is not None and issubclass(kind, KeyboardInterrupt)
