"""Merging runs of one machine, finding regressions."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_samples import NO_TRITON, SQUARE, WIDE, result

from qvae_trt.bench.compare import check_comparable, compare, merge
from qvae_trt.bench.results import PATHS, Cell
from qvae_trt.errors import BenchError, UsageError
from qvae_trt.profiles import PARTS

ENGINES = ("pytorch", "folded", "static", "profiles")


def test_a_merge_ties_two_runs_by_pytorch() -> None:
    engines = result(paths=ENGINES, absent=("compiled",))
    compiled = result(scale=1.1, paths=("pytorch", "compiled"), absent=("static", "profiles"))
    merged = merge([engines, compiled])
    assert merged.paths == ("pytorch", "folded", "compiled", "static", "profiles")
    cell = merged.cell("decoder", SQUARE, "compiled")
    assert cell is not None
    assert cell.timing is not None
    assert (cell.run, cell.timing.median_ms) == (1, pytest.approx(27.5))
    assert merged.speedup(cell) == pytest.approx(4.0), "against pytorch of its own run"
    kept = merged.cell("decoder", SQUARE, "pytorch")
    assert kept is not None
    assert kept.run == 0
    assert {tie.run for tie in merged.ties} == {1}
    assert [tie.ratio for tie in merged.ties] == pytest.approx([1.1] * 4)
    share = merged.floor_share(cell)
    assert share == pytest.approx(10 / 27.5)
    assert not any(c.notes for c in merged.cells), "no reason is left once the cell was measured"


def test_merging_is_the_same_in_two_steps() -> None:
    one, two = result(paths=("pytorch", "folded")), result(paths=("pytorch", "static"))
    three = result(paths=("pytorch", "compiled"))
    assert merge([merge([one, two]), three]) == merge([one, two, three])


def test_a_merge_keeps_service_rows_and_drops_reasons_that_no_longer_hold() -> None:
    first = result(service=True)
    lost = replace(
        first, service=tuple(replace(r, timing=None, notes=("no",)) for r in first.service)
    )
    merged = merge([lost, first])
    assert sum(row.timing is not None for row in merged.service) == 4
    assert {row.notes for row in merged.service if row.timing is None} == {("no",)}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"machine": {"gpu": "NVIDIA L4", "driver": "580.1"}}, "NVIDIA L4"),
        ({"machine": {"gpu": "NVIDIA H200", "driver": "535.2"}}, "535.2"),
        ({"model": "bundled:tiny"}, "bundled:tiny"),
        ({"weights_sha256": "cd" * 32}, "weights_sha256"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_what_cannot_share_a_table(changes: dict[str, object], named: str) -> None:
    with pytest.raises(BenchError, match=named):
        merge([result(), result(**changes)])  # type: ignore[arg-type]


def test_nothing_to_merge() -> None:
    with pytest.raises(BenchError, match="nothing to merge"):
        merge([])


@pytest.mark.parametrize("margin", [-0.1, 11, float("nan")])
def test_a_margin_that_means_nothing(margin: float) -> None:
    with pytest.raises(UsageError, match="margin"):
        compare(result(), result(), margin)


def test_slower_past_the_margin_is_a_regression() -> None:
    old = result()
    assert compare(old, result(scale=1.04), 0.05).ok
    found = compare(old, result(scale=1.06), 0.05)
    assert not found.ok
    assert len(found.regressions) == 20
    assert found.regressions[0].reason == "+6.0 %"
    assert compare(old, result(scale=0.5)).ok
    assert compare(old, result(scale=1.5), 0.6).ok


def test_a_cell_that_is_now_empty_is_a_regression() -> None:
    new = result(paths=ENGINES, absent=("compiled",))
    found = compare(result(), new)
    assert {(c.path, c.reason) for c in found.regressions} == {
        ("compiled", f"no longer measured: {NO_TRITON}")
    }
    assert found.to_dict()["ok"] is False


def test_what_was_not_asked_for_is_no_regression() -> None:
    found = compare(result(), result(paths=("pytorch",), sizes=(WIDE,)))
    assert found.ok
    assert {(c.path, c.resolution) for c in found.changes} == {("pytorch", WIDE)}


def test_service_regresses_too_but_not_first_use() -> None:
    old = result(service=True)
    slower = tuple(
        row if row.timing is None else replace(row, timing=replace(row.timing, median_ms=999.0))
        for row in old.service
    )
    found = compare(old, replace(old, service=slower))
    assert {c.what for c in found.regressions} == {
        "latents_to_pil (stock)",
        "latents_to_pil (qvae)",
        "switch",
    }


def test_nothing_in_common() -> None:
    with pytest.raises(BenchError, match="in common"):
        compare(result(sizes=(WIDE,)), result(sizes=(SQUARE,)))
    empty = replace(
        result(), cells=(Cell(part="decoder", resolution=WIDE, path="pytorch", notes=("oom",)),)
    )
    with pytest.raises(BenchError, match="in common"):
        compare(empty, result())


def test_what_will_have_nothing_in_common_is_known_before() -> None:
    old = result(sizes=(WIDE,), service=True)
    check_comparable(old, [SQUARE, WIDE], PARTS, PATHS)
    for sizes in ([SQUARE], []):
        with pytest.raises(BenchError, match=r"encoder and decoder at 1664x928 with ") as found:
            check_comparable(old, sizes, PARTS, PATHS)
        assert "--resolution" in str(found.value.fix)
    decoder = replace(old, cells=tuple(c for c in old.cells if c.part == "decoder"))
    with pytest.raises(
        BenchError, match=r"has decoder at 1664x928 .* expected encoder at 1664x928"
    ):
        check_comparable(decoder, [WIDE], ["encoder"], PATHS)
    check_comparable(decoder, [WIDE], ["encoder"], PATHS, service=True)
    with pytest.raises(BenchError, match="expected encoder or decoder at 1664x928 with fused"):
        check_comparable(old, [WIDE], PARTS, ["fused"])


def test_a_comparison_says_in_words_what_got_worse() -> None:
    slower = compare(result(), result(scale=1.06))
    assert slower.summary.startswith("20 of 20 medians are worse by more than 5 %, the first: ")
    assert slower.summary.endswith(": +6.0 %")
    lost = compare(result(), result(paths=ENGINES, absent=("compiled",)), 0.125)
    assert "worse by more than 12.5 % or no longer measured, the first: " in lost.summary
    assert compare(result(), result()).summary == ("none of 20 medians is worse by more than 5 %")
    for scale, verdict in ((1.06, "worse"), (1.04, ""), (0.9, "better")):
        found = compare(result(), result(scale=scale))
        assert {found.direction(change) for change in found.changes} == {verdict}


def test_differences_of_the_machines_are_said() -> None:
    new = result(machine={"gpu": "NVIDIA L4"}, versions={"torch": "2.12.0", "tensorrt": "8.6.1"})
    notes = compare(result(), new).notes
    assert "different machines: NVIDIA H200 (driver 580.1), then NVIDIA L4" in notes
    assert "torch: 2.11.0, then 2.12.0" in notes
    assert not any("tensorrt" in note for note in notes)
