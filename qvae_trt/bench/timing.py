"""Timing that can be trusted: warm-up, synchronisation, paths in turns, as many runs as a budget
allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Final

import torch

from qvae_trt.bench.results import Timing
from qvae_trt.errors import QvaeError, UsageError, expected
from qvae_trt.profiles import Part

#: What may empty a cell: an expected failure, a device out of memory, a compiler or a library that
#: is missing. Anything else is a bug and ends the bench.
EXPECTED: Final[tuple[type[Exception], ...]] = (
    *(QvaeError, RuntimeError, SubprocessError, MemoryError, ImportError, OSError),
)


def explain(error: Exception) -> str:
    """One line for a cell's note."""
    known = expected(error)
    if known is None:
        text = f"{type(error).__name__}: {error}"
    else:
        text = known.what if known.fix is None else f"{known.what}; {known.fix}"
    line = " ".join(text.split())
    return line if len(line) <= 300 else line[:299] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long to measure: `budget_s` is meant for one path at one size, between `min_runs` and
    `max_runs`.
    """

    budget_s: float = 1.0
    min_runs: int = 3
    max_runs: int = 100
    warm_up: int = 3
    inputs: int = 3

    def __post_init__(self) -> None:
        if not self.budget_s > 0:
            raise UsageError(f"a budget of {self.budget_s} s, expected more than 0 s")
        if not 1 <= self.min_runs <= self.max_runs or self.warm_up < 1 or self.inputs < 1:
            raise UsageError(f"{self}: expected 1 or more of each, and min_runs <= max_runs")

    def rounds(self, spent_ms: Mapping[str, float]) -> int:
        """How many turns each path gets (the same for all), from what one call of each costs."""
        whole_ms = sum(spent_ms.values())
        if whole_ms <= 0:
            return self.max_runs
        fitting = int(self.budget_s * 1000.0 * len(spent_ms) / whole_ms)
        return max(self.min_runs, min(self.max_runs, fitting))


Clock = Callable[[Callable[[], object]], tuple[float, float | None]]
"""Times a call from an idle device to an idle device: the milliseconds on the device, and those on
the host where they are others."""


def host_clock(call: Callable[[], object]) -> tuple[float, None]:
    """The host's time: right where the call returns only when its work is done, as on a CPU."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000.0, None


def cuda_clock(call: Callable[[], object]) -> tuple[float, float]:
    """The time between two CUDA events on the current stream, and the host's time until the device
    is done.
    """
    first = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    last = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin = time.perf_counter()
    first.record()
    call()
    last.record()
    last.synchronize()
    wall_ms = (time.perf_counter() - begin) * 1000.0
    return float(first.elapsed_time(last)), wall_ms


def clock_for(device: str) -> Clock:
    return cuda_clock if device == "cuda" else host_clock


def make_inputs(part: Part, shape: Sequence[int], *, count: int, seed: int) -> list[torch.Tensor]:
    """Float32 inputs of that shape: pictures in [-1, 1], or latents of unit variance.

    Noise, because a GPU draws the most power, and so clocks lowest, on data without pattern.
    """
    generator = torch.Generator().manual_seed(seed)
    if part == "encoder":
        return [torch.rand(shape, generator=generator) * 2 - 1 for _ in range(count)]
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that a call takes on the GPU, beyond what is there before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


Call = Callable[[int], object]
"""Runs a path once on the input with this index; what it returns is dropped."""


def measure(calls: Mapping[str, Call], *, clock: Clock, limits: Limits) -> dict[str, Timing | str]:
    """Time several paths in turns: each round runs every path once, beginning with another path
    each time.

    So a falling clock or another program on the machine affects all paths equally. What is
    EXPECTED empties one cell instead of ending the bench.

    Returns: how long each takes; for one that failed, which takes no more turns, the reason.
    """
    samples: dict[str, list[tuple[float, float | None]]] = {name: [] for name in calls}
    failures: dict[str, str] = {}

    def turn(name: str, index: int) -> float:
        try:
            device_ms, wall_ms = clock(lambda: calls[name](index % limits.inputs))
        except EXPECTED as error:
            failures[name] = explain(error)
            return 0.0
        samples[name].append((device_ms, wall_ms))
        return device_ms if wall_ms is None else wall_ms

    cost_ms: dict[str, float] = {}
    for name in calls:
        spent_ms = 0.0
        for index in range(limits.warm_up):
            cost_ms[name] = turn(name, index)
            spent_ms += cost_ms[name]
            # A call of seconds is warm after the first; more would only double the wait.
            if name in failures or spent_ms > limits.budget_s * 1000.0:
                break
        samples[name].clear()

    order = [name for name in calls if name not in failures]
    rounds = limits.rounds({name: cost_ms[name] for name in order}) if order else 0
    for index in range(rounds):
        shift = index % len(order)
        for name in order[shift:] + order[:shift]:
            if name not in failures:
                turn(name, index)
    return {name: failures.get(name) or _timing(found) for name, found in samples.items()}


def _timing(samples: Sequence[tuple[float, float | None]]) -> Timing:
    wall_ms = [wall for _, wall in samples if wall is not None]
    return Timing.of([device for device, _ in samples], wall_ms=wall_ms)
