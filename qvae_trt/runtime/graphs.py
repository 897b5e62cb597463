"""A run of a static engine as a CUDA graph: one launch in place of a hundred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class CapturedRun:
    """A captured run, with an input and an output of its own.

    Attributes:
        generation: of the scratch buffer whose address it holds; it is dead once that changes.
    """

    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    y: torch.Tensor
    generation: int

    @classmethod
    def capture(
        cls,
        execute: Callable[[torch.Tensor, torch.Tensor, int], None],
        *,
        x: torch.Tensor,
        y: torch.Tensor,
        generation: int,
    ) -> CapturedRun:
        """Capture `execute(x, y, stream)` on tensors like these. Waits for the device.

        Raises:
            RuntimeError: CUDA refuses; also what `execute` raises.
        """
        source, result = torch.empty_like(x), torch.empty_like(y)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        # thread_local: other threads may allocate meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            execute(source, result, stream.cuda_stream)
        return cls(graph, source, result, generation)

    def replay(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The run of `x`, into `y`, on the current stream."""
        self.x.copy_(x)
        self.graph.replay()
        return y.copy_(self.y)


def capturing(x: torch.Tensor) -> bool:
    """Whether the current stream of x's device is being captured into a CUDA graph."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
