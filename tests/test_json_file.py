"""Strict JSON: what is refused, with its place."""

from __future__ import annotations

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.json_file import Table, parse_object
from qvae_trt.profiles import Resolution


def table(text: str) -> Table:
    return parse_object(text.encode(), most_bytes=1000, fault=EngineError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "it is no JSON object"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is no JSON number"),
        ('{"a": {"b": 1, "b": 2}}', "a name stands twice in one object"),
        ('{"a": ' + "9" * 5000 + "}", "more than 1000 bytes"),
        ("[" * 900, "Expecting value"),
    ],
)
def test_what_is_no_object(text, says):
    with pytest.raises(EngineError, match=says):
        table(text)


def test_depth_and_digits():
    for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(EngineError):
            parse_object(text.encode(), most_bytes=1 << 20, fault=EngineError)
    with pytest.raises(EngineError, match="utf-8"):
        parse_object(b"\xff", most_bytes=1, fault=EngineError)


@pytest.mark.parametrize(
    ("read", "value", "says"),
    [
        ("text", "1", "no text"),
        ("text", '"\\ud800"', "no text"),
        ("sha256", '"abc"', "no SHA-256"),
        ("resolution", '"64X48"', "expected 64x48"),
        ("resolution", '"63x48"', "width is 63"),
        ("flag", "0", "expected true or false"),
        ("integer", "true", "expected a whole number, at least 0"),
        ("integer", "-1", "expected a whole number, at least 0"),
        ("integer", "1.0", "expected a whole number, at least 0"),
        ("integer", str(1 << 63), "expected a whole number, at least 0"),
        ("number", '"1"', "no number"),
        ("number", "false", "no number"),
        ("number", "-0.5", "out of range"),
        ("number", "1e999", "out of range"),
        ("positive", "0", "expected more than 0"),
        ("positive", "1e-320", "expected more than 0"),
        ("table", "[]", "inner.a is no JSON object"),
        ("list", "{}", "no list"),
    ],
)
def test_a_value_of_another_kind(read, value, says):
    inner = table('{"inner": {"a": ' + value + "}}").table("inner")
    with pytest.raises(EngineError, match=says) as caught:
        getattr(inner, read)("a")
    assert caught.value.what.startswith("inner.a")


def test_values():
    one = table('{"a": 1, "b": null, "c": {}, "d": [{"e": "64x48"}], "f": "x"}')
    assert (one.integer("a"), one.number("a"), one.positive("a")) == (1, 1.0, 1.0)
    nothing = (one.integer_or_none, one.number_or_none, one.text_or_none, one.table_or_none)
    assert [read("b") for read in nothing] == [None] * 4
    (inner,) = one.tables("d")
    assert (inner.where, inner.resolution("e")) == ("d[0].", Resolution(48, 64))
    assert one.choice("f", ("x", "y")) == "x"
    with pytest.raises(EngineError, match="f: expected one of y, z"):
        one.choice("f", ("y", "z"))
    with pytest.raises(EngineError, match="g: missing"):
        one.text("g")
    with pytest.raises(EngineError, match="'c': unknown"):
        one.end()
    one.table("c").end()
    one.end()


def test_a_version_of_any_size_can_be_told():
    assert table('{"format_version": 1' + "0" * 40 + "}").version() == 10**40
    with pytest.raises(EngineError, match="at least 1"):
        table('{"format_version": 0}').version()
