"""Strict JSON: what is refused, with its place."""

from __future__ import annotations

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.files.reading import MOST_BYTES
from qvae_trt.files.values import Value, parse_object, read_object


def top(text: str) -> Value:
    return parse_object(text.encode(), fault=EngineError)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "expected a table of names and values, found a list"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('{"a": {"b": 1, "b": 2}}', 'the name "b" is there twice in one object'),
        ("[" * 900, "Expecting value"),
    ],
)
def test_what_is_no_object(text, says):
    with pytest.raises(EngineError, match=says):
        top(text)


def test_a_byte_order_mark_is_no_part_of_the_text():
    assert top("\ufeff" + '{"a": 1}')["a"].integer() == 1


def test_a_file_of_any_length_is_not_read(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b"{}".ljust(MOST_BYTES))
    assert read_object(path, fault=EngineError).data == {}
    path.write_bytes(b"{}".ljust(MOST_BYTES + 1))
    with pytest.raises(EngineError, match=f"more than {MOST_BYTES} bytes"):
        read_object(path, fault=EngineError)


def test_depth_and_digits():
    for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        with pytest.raises(EngineError):
            parse_object(text.encode(), fault=EngineError)
    with pytest.raises(EngineError, match="utf-8"):
        parse_object(b"\xff", fault=EngineError)
