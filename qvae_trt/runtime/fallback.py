"""Warnings and counts: of what served in place of the best engine, and of NaN in results."""

from __future__ import annotations

import math
import sys
import threading
import warnings
from collections import deque
from collections.abc import Hashable
from types import FrameType
from typing import Literal, get_args

import torch

from qvae_trt.errors import ExecutionError, QvaeError
from qvae_trt.runtime.arguments import check_word
from qvae_trt.runtime.cache import Counts, Recent

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
        """A result of `where` is not finite: warn once a reason, unless silent."""
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
            # `warnings.warn` would keep every text forever in the calling module.
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


#: How many results may wait for their check; while so many wait, others are not checked.
_SLOTS = 64
_UNKNOWN = -1.0


class FiniteCheck:
    """Warns of NaN and infinity in results, each once.

    The largest magnitude of a result is computed behind the run that made it, and copied to the
    host when the device comes to it. It is looked at in later calls: on a CPU, in the same one.
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._slots: dict[torch.device, torch.Tensor] = {}
        self._next = 0
        self._pending: deque[tuple[str, torch.Tensor]] = deque()
        self._lock = threading.Lock()

    def watch(self, where: str, y: torch.Tensor) -> None:
        """Queue a result for checking, and warn about those whose check is done."""
        largest = torch.linalg.vector_norm(y.detach(), ord=math.inf)
        with self._lock:
            slot = self.slot(y.device) if len(self._pending) < _SLOTS else None
            if slot is not None:
                slot.copy_(largest, non_blocking=True)
                self._pending.append((where, slot))
        self.tell()

    def tell(self) -> None:
        """Warn about results whose check is done and that are not finite."""
        while True:
            with self._lock:
                if not self._pending or float(self._pending[0][1]) == _UNKNOWN:
                    return
                where, slot = self._pending.popleft()
                finite = math.isfinite(float(slot))
            if not finite:
                error = ExecutionError(
                    "NaN or infinity in a result: from its input, or from values that are too"
                    " large for what served; with check_nan=True engines give way then"
                )
                self._notices.tell(where, error)

    def slot(self, device: torch.device) -> torch.Tensor | None:
        """A number on the host that says `_UNKNOWN` until the device writes it: reading it asks
        nothing of CUDA, which another thread may be capturing. None where it forbids the memory.
        """
        slots = self._slots.get(device)
        if slots is None:
            pinned = device.type == "cuda"
            try:
                with torch.inference_mode(False):  # what is made in it can only be written in it
                    slots = torch.empty(_SLOTS, dtype=torch.float32, pin_memory=pinned)
            except RuntimeError:
                return None
            self._slots[device] = slots
        self._next = (self._next + 1) % _SLOTS
        slot = slots[self._next]
        slot.fill_(_UNKNOWN)
        return slot
