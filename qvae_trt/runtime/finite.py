"""Whether results are finite, learned without waiting for the device."""

from __future__ import annotations

import math
import threading
from collections import deque
from typing import TYPE_CHECKING

import torch

from qvae_trt.errors import ExecutionError

if TYPE_CHECKING:
    from qvae_trt.runtime.fallback import Notices

#: Results of one device whose check may be under way; of more, some are not checked.
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
        """Have a result looked at; tell of those that are known by now."""
        largest = torch.linalg.vector_norm(y.detach(), ord=math.inf)
        with self._lock:
            slot = self.slot(y.device) if len(self._pending) < _SLOTS else None
            if slot is not None:
                slot.copy_(largest, non_blocking=True)
                self._pending.append((where, slot))
        self.tell()

    def tell(self) -> None:
        """Warn of the results that are known by now not to be finite."""
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
