"""Turns, warm-up, budgets, and paths that fail half way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from qvae_trt.bench.results import Timing
from qvae_trt.bench.timing import Limits, host_clock, measure
from qvae_trt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class Log:
    """A clock that runs calls in no time and gives each the milliseconds it was told."""

    def __init__(self, ms: dict[str, float]) -> None:
        self.ms = ms
        self.calls: list[tuple[str, int]] = []

    def path(self, name: str) -> Callable[[int], object]:
        return lambda index: self.calls.append((name, index))

    def time(self, call: Callable[[], object]) -> tuple[float, float]:
        call()
        ms = self.ms[self.calls[-1][0]]
        return ms, ms + 1


def timed(log: Log, limits: Limits, **calls: Callable[[int], object]) -> dict[str, object]:
    paths = {name: log.path(name) for name in log.ms} | calls
    return dict(measure(paths, clock=log.time, limits=limits))


def test_paths_take_turns_and_begin_in_turn() -> None:
    log = Log({"a": 10.0, "b": 20.0, "c": 30.0})
    limits = Limits(budget_s=0.08, min_runs=2, max_runs=50, warm_up=2, inputs=2)
    found = timed(log, limits)
    # 80 ms for each of three paths are 240 ms; a round's host time is 63 ms.
    assert [one.runs for one in found.values()] == [3, 3, 3]  # type: ignore[attr-defined]
    warm, rest = log.calls[:6], log.calls[6:]
    assert [name for name, _ in warm] == ["a", "a", "b", "b", "c", "c"]
    assert [name for name, _ in rest] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [index for _, index in rest] == [0] * 3 + [1] * 3 + [0] * 3, "inputs rotate"


def test_slow_calls_get_the_least_number_of_runs_and_one_warm_up() -> None:
    log = Log({"slow": 5000.0})
    found = timed(log, Limits(budget_s=1, min_runs=3, max_runs=50, warm_up=3))
    assert found["slow"].runs == 3  # type: ignore[attr-defined]
    assert len(log.calls) == 4


def test_fast_calls_get_the_most() -> None:
    log = Log({"fast": 0.001})
    assert timed(log, Limits(max_runs=7, min_runs=2))["fast"].runs == 7  # type: ignore[attr-defined]


def test_one_path_fails_and_the_others_go_on() -> None:
    log = Log({"good": 1.0, "bad": 1.0})
    calls = 0

    def bad(index: int) -> None:
        nonlocal calls
        calls += 1
        log.calls.append(("bad", index))
        if calls == 5:
            raise RuntimeError("out of memory")

    found = measure(
        {"good": log.path("good"), "bad": bad},
        clock=log.time,
        limits=Limits(min_runs=6, max_runs=6, warm_up=2),
    )
    assert found["bad"] == "RuntimeError: out of memory", "half a measurement is none"
    timing = found["good"]
    assert isinstance(timing, Timing)
    assert (timing.runs, timing.median_ms, timing.wall_ms) == (6, 1.0, 2.0)
    assert calls == 5


def test_failing_while_warming_up_costs_no_round() -> None:
    log = Log({"good": 1.0})

    def bad(index: int) -> None:
        raise RuntimeError(f"no kernel {index}")

    found = timed(log, Limits(min_runs=2, max_runs=2), bad=bad)
    assert found["bad"] == "RuntimeError: no kernel 0"
    assert found["good"].runs == 2  # type: ignore[attr-defined]


def test_a_bug_is_not_a_failed_cell() -> None:
    def bug(index: int) -> None:
        raise TypeError(f"bug {index}")

    with pytest.raises(TypeError):
        timed(Log({}), Limits(), bug=bug)


def test_the_host_clock_sees_a_sleep() -> None:
    device_ms, wall_ms = host_clock(lambda: time.sleep(0.02))
    assert wall_ms is None
    assert 19 < device_ms < 2000


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget_s": 0},
        {"budget_s": float("nan")},
        {"min_runs": 0},
        {"min_runs": 5, "max_runs": 4},
        {"warm_up": 0},
        {"inputs": 0},
    ],
)
def test_limits_that_measure_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Limits(**wrong)  # type: ignore[arg-type]
