"""What is said and counted where something else serves than the best engine."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import TYPE_CHECKING, Literal, get_args

from qvae_trt.runtime.arguments import check_word
from qvae_trt.runtime.recent import Counts, Recent

if TYPE_CHECKING:
    from collections.abc import Hashable
    from types import FrameType

    from qvae_trt.errors import QvaeError

FallbackMode = Literal["warn", "raise", "silent"]

_OUR_FRAMES = ("qvae_trt.", "diffusers.utils.", "torch.nn.modules.", "torch._dynamo.")


class FallbackWarning(UserWarning):
    """A picture came from PyTorch, or from another engine than the best one, and why."""


class Notices:
    """What to do with the reason of a fallback: warn once for each, raise, or nothing.

    Attributes:
        counts: how often `(where, what served instead, the reason)` came; "" is nothing.
    """

    def __init__(self, mode: FallbackMode) -> None:
        check_word("fallback", mode, get_args(FallbackMode))
        self.mode: FallbackMode = mode
        self.counts: Counts[tuple[str, str, str]] = Counts()
        self._warned: Recent[Hashable, None] = Recent()
        self._lock = threading.Lock()

    def give(self, where: str, error: QvaeError, *, instead: str) -> None:
        """`where` (part and size) goes to PyTorch because of `error`: warn once for each reason, or
        raise it.
        """
        if self.mode == "raise":
            self.counts.add((where, "", error.what))
            raise error
        self.note(where, error, instead=instead)

    def note(self, where: str, error: QvaeError, *, instead: str) -> None:
        """`where` goes to another engine than the best: warn once a reason, unless silent."""
        self.counts.add((where, instead, error.what))
        self._once(where, error, f"{where}: {instead} instead: {error}", FallbackWarning)

    def tell(self, where: str, error: QvaeError) -> None:
        """What came from `where` is to be looked at: warn once a reason, unless silent."""
        self._once(where, error, f"{where}: {error}", RuntimeWarning)

    def _once(self, where: str, error: QvaeError, text: str, category: type[Warning]) -> None:
        if self.mode == "silent":
            return
        reason = where, type(error), error.what
        with self._lock:
            warned = reason in self._warned
            self._warned[reason] = None
        if not warned:
            frame = _users_frame()
            # `warnings.warn` would keep every text, for ever, in the module that called.
            warnings.warn_explicit(
                text,
                category,
                frame.f_code.co_filename,
                frame.f_lineno,
                module=frame.f_globals.get("__name__"),
            )

    def forget(self) -> None:
        """Warn again of what was warned of before."""
        with self._lock:
            self._warned.clear()


def _users_frame() -> FrameType:
    """The first caller that is neither of this package nor a wrapper, of diffusers or PyTorch,
    around `encode` and `decode`.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_OUR_FRAMES):
        frame = frame.f_back
    return frame
