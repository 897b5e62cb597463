"""Rows of JSON: what the types of fields say is what is read, and written again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from qvae_trt.errors import QvaeError, StoreError
from qvae_trt.files.values import AnyNumber, Count, Fact, Positive, Value
from qvae_trt.json_rows import FLAT, read, write
from qvae_trt.profiles import Resolution


@dataclass(frozen=True, slots=True)
class Inner:
    size: Resolution
    kind: Literal["a", "b"]


@dataclass(frozen=True, slots=True)
class Row:
    inner: Inner
    flat: Annotated[Inner, FLAT]
    rows: tuple[Inner, ...]
    maybe: Inner | None
    count: Count
    ms: Positive
    change: AnyNumber | None
    facts: Mapping[str, Fact]
    times: Mapping[Resolution, Positive]
    lines: tuple[str, ...]
    steps: Mapping[str, float]
    done: bool


INNER = Inner(Resolution(64, 48), "a")
TIMES = {Resolution(64, 48): 1.0}
FACTS = {"gpu": "x", "count": 1, "none": None, "on": False}
ROW = Row(INNER, INNER, (INNER,), None, 1, 2.5, -1.0, FACTS, TIMES, ("x",), {"load": 1.0}, True)


def top(data: object) -> Value:
    return Value(data, StoreError)


def test_what_is_written_is_read() -> None:
    data = write(ROW)
    assert data["size"] == "48x64"
    assert data["inner"] == {"size": "48x64", "kind": "a"}
    assert "flat" not in data
    assert read(Row, top(data), strict=True) == ROW


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 0}, "count: expected a whole number, 1"),
        ({"ms": 0}, "ms: expected more than 0"),
        ({"kind": "c"}, "kind: expected one of a, b"),
        ({"rows": [{"size": "48x64"}]}, r"rows\[0\].kind: missing"),
        ({"maybe": 1}, "maybe: expected a table of names and values"),
        ({"lines": [1]}, r"lines\[0\]: expected text"),
        ({"steps": {"load": "x"}}, "steps.load: expected a number"),
        ({"facts": {"gpu": []}}, "facts.gpu: expected text, found a list"),
        ({"facts": {"\ud800": 1}}, "facts.*: expected text"),
        ({"times": {"048x64": 1}}, 'times.048x64: expected 48x64, found "048x64"'),
        ({"times": {"48x64": 0}}, "times.48x64: expected more than 0, found 0"),
        ({"size": "48x63"}, "size: 48x63: the height is 63"),
        ({"size": "48X64"}, '^size: expected 48x64, found "48X64"$'),
        ({"size": " 48x64"}, "^size: expected 48x64"),
        ({"size": 5}, "^size: expected text, found 5$"),
        ({"more": 1}, "more: unknown"),
        ({"flat": {}}, "flat: unknown"),
        ({"inner": {"size": "48x64", "kind": "a", "more": 1}}, "inner.more: unknown"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change: dict[str, object], words: str) -> None:
    with pytest.raises(QvaeError, match=words):
        read(Row, top(write(ROW) | change), strict=True)


def test_a_field_that_is_given_is_not_read() -> None:
    data = write(ROW)
    del data["done"]
    assert read(Row, top(data), done=True, strict=True) == ROW
    with pytest.raises(QvaeError, match="done: unknown"):
        read(Row, top(write(ROW)), done=True, strict=True)


@pytest.mark.parametrize("text", ["48X64", " 48x64 ", "048x64"])
def test_people_may_write_a_size_as_they_like(text: str) -> None:
    data = write(INNER) | {"size": text}
    assert read(Inner, Value(data, StoreError, by_hand=True)) == INNER
