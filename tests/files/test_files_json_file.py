"""Strict JSON: what is refused, with its place."""

from __future__ import annotations

import re

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.files.json_file import Table, parse_object
from qvae_trt.profiles import Resolution


def table(text: str) -> Table:
    return parse_object(text.encode(), fault=EngineError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "expected a JSON object, found a list"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"a": {"b": 1, "b": 2}}', 'the name "b" is there twice in one object'),
        ("[" * 900, "Expecting value"),
    ],
)
def test_what_is_no_object(text, says):
    with pytest.raises(EngineError, match=says):
        table(text)


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert table("\ufeff" + '{"a": 1}').integer("a") == 1


def test_depth_and_digits():
    for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(EngineError):
            parse_object(text.encode(), fault=EngineError)
    with pytest.raises(EngineError, match="utf-8"):
        parse_object(b"\xff", fault=EngineError)


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
        ("table", "[]", "inner.a: expected a JSON object, found a list"),
        ("list", "{}", "expected a list, found an object"),
    ],
)
def test_a_value_of_another_kind(read, value, says):
    inner = table('{"inner": {"a": ' + value + "}}").table("inner")
    with pytest.raises(EngineError, match=re.escape(says)) as caught:
        getattr(inner, read)("a")
    assert caught.value.what.startswith("inner.a")


@pytest.mark.parametrize(("value", "says"), [("64X48", "expected 64x48"), ("63x48", "width is 63")])
def test_a_text_that_stands_for_something_else(value, says):
    with pytest.raises(EngineError, match=says):
        table(f'{{"a": "{value}"}}').parsed("a", Resolution.parse)


def test_values():
    one = table('{"a": 1, "b": null, "c": {}, "d": [{"e": "64x48"}], "f": "x"}')
    assert (one.integer("a"), one.number("a"), one.positive("a")) == (1, 1.0, 1.0)
    nothing = (one.number_or_none, one.table_or_none)
    assert [read("b") for read in nothing] == [None] * 2
    (inner,) = one.tables("d")
    assert (inner.where, inner.parsed("e", Resolution.parse)) == ("d[0].", Resolution(48, 64))
    assert one.choice("f", ("x", "y")) == "x"
    with pytest.raises(EngineError, match="f: expected one of y, z"):
        one.choice("f", ("y", "z"))
    with pytest.raises(EngineError, match="g: missing"):
        one.text("g")
    with pytest.raises(EngineError, match="'c': unknown"):
        one.end()
    one.table("c").end()
    one.end()


def test_a_list_as_a_table():
    one = table('{"a": {"b": [1, 2, "x"]}}').table("a")
    items = one.items("b", 3)
    assert [items.integer("[0]"), items.integer("[1]"), items.text("[2]")] == [1, 2, "x"]
    with pytest.raises(EngineError, match=r'a\.b\[2\]: expected a whole number, 0 to 4, found "x"'):
        items.integer("[2]", most=4)
    with pytest.raises(EngineError, match=r"a\.b: expected 2 values, found 3"):
        one.items("b", 2)


def test_a_version_of_any_size_can_be_told():
    assert table('{"format_version": 1' + "0" * 40 + "}").version() == 10**40
    with pytest.raises(EngineError, match="1 or more, found 0"):
        table('{"format_version": 0}').version()
