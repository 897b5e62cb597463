"""Values from files: what is refused, with its place."""

from __future__ import annotations

import re

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.files.values import Value, parse_object, place_of


def top(text: str) -> Value:
    return parse_object(text.encode(), fault=EngineError)


@pytest.mark.parametrize(
    ("read", "value", "says"),
    [
        ("text", "1", "expected text, found 1"),
        ("text", '"\\ud800"', 'expected text, found "\\ud800"'),
        ("sha256", '"abc"', 'expected 64 hexadecimal digits in lower case, found "abc"'),
        ("flag", "0", "expected true or false"),
        ("integer", "true", f"expected a whole number, 0 to {1 << 62}, found true"),
        ("integer", "-1", f"expected a whole number, 0 to {1 << 62}, found -1"),
        ("integer", "1.0", f"expected a whole number, 0 to {1 << 62}, found 1.0"),
        ("integer", str(1 << 63), f"expected a whole number, 0 to {1 << 62}, found {1 << 63}"),
        ("number", '"1"', 'expected a number, found "1"'),
        ("number", "false", "expected a number, found false"),
        ("number", "-0.5", "expected 0 to 4.61169e+18, found -0.5"),
        ("number", "1e999", "expected 0 to 4.61169e+18, found Infinity"),
        ("positive", "0", "expected more than 0"),
        ("positive", "1e-320", "expected more than 0"),
        ("plain", "[]", "expected text, found a list"),
        ("plain", "1e999", "found Infinity"),
        ("fields", "[]", "inner.a: expected a table of names and values, found a list"),
        ("items", "{}", "expected a list, found an object"),
    ],
)
def test_a_value_of_another_kind(read, value, says):
    inner = top('{"inner": {"a": ' + value + "}}")["inner"]
    with pytest.raises(EngineError, match=re.escape(says)) as caught:
        getattr(inner["a"], read)()
    assert caught.value.what.startswith("inner.a")


def test_values():
    one = top('{"a": 1, "b": {}, "c": [{"d": -1.5}], "e": null}')
    assert (one["a"].integer(), one["a"].number(), one["a"].positive()) == (1, 1.0, 1.0)
    assert (one["a"].plain(), one["e"].plain()) == (1, None)
    (inner,) = one["c"].items()
    assert (place_of(inner["d"].keys), inner["d"].any_number()) == ("c[0].d: ", -1.5)
    with pytest.raises(EngineError, match=r"c\[0\]\.g: missing"):
        inner["g"]
    with pytest.raises(EngineError, match="c: unknown, expected a, b, e"):
        one.only("a", "b", "e")
    one.only("a", "b", "c", "e")


def test_a_list():
    items = top('{"a": {"b": [1, 2, "x"]}}')["a"]["b"]
    assert [place_of(item.keys) for item in items.items(3)] == ["a.b[0]: ", "a.b[1]: ", "a.b[2]: "]
    with pytest.raises(EngineError, match=r'a\.b\[2\]: expected a whole number, 0 to 4, found "x"'):
        items.items()[2].integer(most=4)
    with pytest.raises(EngineError, match=r"a\.b: expected 2 values, found 3"):
        items.items(2)


def test_a_name_that_cannot_be_printed():
    with pytest.raises(EngineError, match=r"x\\ny: unknown"):
        top('{"x\\ny": 1}').only("x")


def test_a_newer_version_of_any_size_is_said_to_be_one():
    top('{"format_version": 2}').check_version(2)
    for newer in (3, 10**40):
        with pytest.raises(EngineError, match=f"{newer}, expected at most 2: written by a newer"):
            top(f'{{"format_version": {newer}}}').check_version(2)
    with pytest.raises(EngineError, match="1 or more, found 0"):
        top('{"format_version": 0}').check_version(2)
