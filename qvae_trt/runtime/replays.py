"""The fused network at small sizes as CUDA graphs: one launch in place of two hundred."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from qvae_trt.runtime.graphs import captures
from qvae_trt.runtime.recent import Recent

if TYPE_CHECKING:
    from collections.abc import Callable

    from qvae_trt.profiles import Part

#: Above it a run takes longer than its launches.
MOST_PIXELS = 768 * 768
_KEPT = 32

Key = tuple["Part", torch.Size, torch.dtype]


@dataclass(frozen=True, slots=True)
class _Replay:
    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    y: torch.Tensor


class Replays:
    """Captured runs on one device.

    All of them share one pool of memory, so that many sizes take no more than the largest. So one
    replay waits for the one before it, also on other streams.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._replays: OrderedDict[Key, _Replay] = OrderedDict()
        self._seen: Recent[Key, None] = Recent()
        self._lock = threading.Lock()
        self._pool = torch.cuda.graph_pool_handle()
        self._last = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(
        self, part: Part, x: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """`call(x)`, replayed from its third run on."""
        key = (part, x.shape, x.dtype)
        with self._lock:
            replay = self._replays.get(key)
            if replay is None and key in self._seen:
                replay = self._capture(key, x, call)
            if replay is not None:
                return self._replay(key, replay, x)
            self._seen[key] = None
        return call(x)

    def _replay(self, key: Key, replay: _Replay, x: torch.Tensor) -> torch.Tensor:
        self._replays.move_to_end(key)
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._last)
        with torch.no_grad():
            replay.x.copy_(x)
            replay.graph.replay()
            y = replay.y.clone()
        self._last.record(stream)
        return y

    def _capture(
        self, key: Key, x: torch.Tensor, call: Callable[[torch.Tensor], torch.Tensor]
    ) -> _Replay | None:
        """None while an engine is loaded or captured: another run tries again."""
        with captures.one() as alone:
            if not alone:
                return None
            while len(self._replays) >= _KEPT:
                self._last.synchronize()
                self._replays.popitem(last=False)
            # Tensors made in inference mode can only be written in it.
            with torch.inference_mode(False), torch.no_grad():
                source, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
                torch.cuda.current_stream(self._device).synchronize()
                with torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ):
                    y = call(source)
        replay = self._replays[key] = _Replay(graph, source, y)
        return replay

    def close(self) -> None:
        """Forget all of them, once the last replay is over."""
        with self._lock:
            self._last.synchronize()
            self._replays.clear()
            self._seen.clear()
