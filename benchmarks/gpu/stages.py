"""Where the time of a first use goes: host milliseconds of each stage of loading and running."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from qvae_trt import store
from qvae_trt.backends.trt_session import TensorRTSession
from qvae_trt.runtime.memory import Scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: In the order in which they happen. `check` holds the sidecar's reading and the hash.
STAGES = (
    "check",
    "read",
    "runtime",
    "deserialize",
    "context",
    "select",
    "scratch",
    "enqueue",
    "wait",
    "other",
)


class Clock:
    """Milliseconds by stage since the last `take`."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}

    def around(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self.add(stage, (time.perf_counter() - start) * 1e3)

        return timed

    def add(self, stage: str, ms: float) -> None:
        self._spent[stage] = self._spent.get(stage, 0.0) + ms

    def run(self, call: Callable[[], object]) -> dict[str, float]:
        """`call` from an idle device to an idle device: every stage, and the `total`."""
        torch.cuda.synchronize()
        self._spent.clear()
        start = time.perf_counter()
        call()
        returned = time.perf_counter()
        torch.cuda.synchronize()
        end = time.perf_counter()
        self.add("wait", (end - returned) * 1e3)
        total = (end - start) * 1e3
        spent = {stage: round(self._spent.get(stage, 0.0), 3) for stage in STAGES}
        spent["other"] = round(total - sum(spent.values()), 3)
        return {**spent, "total": round(total, 3)}


class _TimedRuntime:
    """A TensorRT runtime whose deserialising is timed; pybind's classes take no patches."""

    def __init__(self, clock: Clock, runtime: Any) -> None:
        self._runtime = runtime
        self.deserialize_cuda_engine = clock.around("deserialize", runtime.deserialize_cuda_engine)


@contextmanager
def timed(trt: Any) -> Iterator[Clock]:
    """Times the stages while the block runs."""
    clock = Clock()
    real = trt.Runtime
    make = clock.around("runtime", real)
    with ExitStack() as stack:

        def patch(owner: Any, name: str, stage: str) -> None:
            whole = clock.around(stage, getattr(owner, name))
            # A plain function, so that it binds as the method does.
            stack.enter_context(mock.patch.object(owner, name, lambda *a, **k: whole(*a, **k)))

        patch(store, "check_engine", "check")
        patch(Path, "read_bytes", "read")
        patch(TensorRTSession, "__init__", "context")
        patch(TensorRTSession, "select", "select")
        patch(Scratch, "reserve", "scratch")
        patch(TensorRTSession, "execute", "enqueue")
        stack.enter_context(
            mock.patch.object(trt, "Runtime", lambda log: _TimedRuntime(clock, make(log)))
        )
        yield clock
