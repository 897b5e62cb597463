"""The program `qvae`, and `python -m qvae_trt`."""

from __future__ import annotations

import signal
import sys

from qvae_trt import interrupts


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    with interrupts.delivered():
        try:
            from qvae_trt.cli.app import main as run

            code = run()
        except BaseException:
            if not interrupts.requested():
                raise
            interrupts.settle()
            if sys.stderr is not None:
                sys.stderr.write("interrupted\n")
            code = 130
    # Where an interrupt left code that `exec` ran, as a library does while it is imported, Python
    # would end by that signal, and not with the exit code. The next `exec` makes it forget.
    exec("")  # noqa: S102
    # What is left is Python's own end, which a signal may cut short but not print about.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    return code


if __name__ == "__main__":
    sys.exit(main())
