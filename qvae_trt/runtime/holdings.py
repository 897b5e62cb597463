"""What an engine holds on the device, freed once the device is done with it, also where the engine
was dropped and not closed.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qvae_trt.runtime.graphs import captures

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from qvae_trt.backends import Session
    from qvae_trt.runtime.graphs import CapturedRun
    from qvae_trt.runtime.scratch import Scratch


@dataclass(slots=True)
class Holdings:
    """A session, and the graph captured of it.

    Attributes:
        session: not closed by itself: its last run may be queued.
        device: where it runs.
        scratch: whose turns its runs took.
        graph: None where none was captured.
    """

    session: Session
    device: torch.device
    scratch: Scratch
    graph: CapturedRun | None = None

    def free(self) -> None:
        """Wait for the last run, and free everything."""
        try:
            self.free_graph()
        finally:
            # The thread's device may be another. No lock is held here that a capture waits for.
            with on(self.device), captures.none():
                self.session.close()

    def free_graph(self) -> None:
        """Wait for the last run, and free the graph: its tensors may be in use on another stream
        than the one they go back to.
        """
        self.scratch.drain()
        graph, self.graph = self.graph, None
        if graph is not None:
            with on(self.device):
                graph.close()


def on(device: torch.device | None) -> AbstractContextManager[object]:
    """A device as the thread's current one, where it is a GPU."""
    if device is None or device.type != "cuda":
        return nullcontext()
    return torch.cuda.device(device)


_LOG = logging.getLogger(__name__)
_dropped: deque[Holdings] = deque()


def drop(holdings: Holdings) -> None:
    """For a finalizer: leave them to the next `free_dropped`. Garbage is collected anywhere, also
    where a lock is held and while an engine is captured, so that nothing is waited for here.
    """
    _dropped.append(holdings)


def free_dropped() -> None:
    """Free what engines left behind that were dropped and not closed."""
    while _dropped:
        try:
            holdings = _dropped.popleft()
        except IndexError:  # another thread was faster
            return
        try:
            holdings.free()
        except RuntimeError as error:  # of CUDA: not the caller's, whose own engine may be well
            _LOG.warning("what a dropped engine held was not freed: %s", error)
