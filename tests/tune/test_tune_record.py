"""The file of what was measured: read back whole, or refused with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tune_cases import sample

from qvae_trt.errors import BenchError
from qvae_trt.tune import record


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tune.json"
    record.save(sample(), path)
    assert record.load(path) == sample()


def paths(value: object, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [at, *(place for key, item in inner for place in paths(item, (*at, key)))]


PLACES = paths(sample().to_dict())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


LIKELY = st.sampled_from(
    [0, -1, 1, 6, 1e300, 10**400, "", "a" * 64, "64x48", "64X48", "63x48", "ok", "failed", "\ud800"]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    place=st.sampled_from(PLACES),
    how=st.sampled_from(["replace", "remove", "add"]),
    value=JSON | LIKELY,
)
def test_a_changed_file_is_refused_or_read_whole(
    place: tuple[Any, ...], how: str, value: object
) -> None:
    data: Any = sample().to_dict()
    holder, keys = data, list(place)
    while len(keys) > 1:
        holder = holder[keys.pop(0)]
    if not keys:
        data = value
    elif how == "remove":
        del holder[keys[0]]
    elif how == "replace" or not isinstance(holder, dict):
        holder[keys[0]] = value
    else:
        holder["more"] = value
    read_or_refuse(json.dumps(data).encode())
    if how == "remove" and keys and isinstance(keys[0], str) and place != ("choice", "decoder"):
        with pytest.raises(BenchError):
            record.parse(json.dumps(data).encode(), path=Path("t.json"))


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_refused_or_read_whole(raw: bytes) -> None:
    read_or_refuse(raw)


def read_or_refuse(raw: bytes) -> None:
    try:
        file = record.parse(raw, path=Path("t.json"))
    except BenchError as error:
        assert error.what.startswith("t.json: ")
        error.what.encode()  # can be printed
        return
    again = record.parse(json.dumps(file.to_dict()).encode(), path=Path("t.json"))
    assert again == file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda d: d.update(format_version=2),
            "2, expected at most 1: written by a newer qvae",
        ),
        (lambda d: d["choice"]["decoder"].update(level=3), "choice.decoder: not among"),
        (lambda d: d["measurements"].append(d["measurements"][0]), "one variant twice"),
        (lambda d: d["measurements"][1].update(status="broken"), "choice.decoder: not among"),
        (
            lambda d: d["measurements"][1].update(lowering="norm=fp32"),
            "measurements[1].lowering: expected upsample=",
        ),
        (
            lambda d: d["choice"]["decoder"].update(lowering="norm=conv"),
            (
                "choice.decoder.lowering: norm is 'conv', expected native or fp32 or conv_spread "
                "or conv_wide"
            ),
        ),
        (lambda d: d["measurements"][3].update(status="ok"), "does not fit timing and parity"),
        (lambda d: d["measurements"][0]["timing"].update(median_ms=0), "expected more than 0"),
        (lambda d: d["measurements"][0].update(extra=1), "measurements[0].extra: unknown"),
        (lambda d: d["key"].update(precision="int8"), "key.precision: expected one of fp16"),
    ],
)
def test_what_a_refusal_says(change: Any, words: str) -> None:
    data: Any = json.loads(json.dumps(sample().to_dict()))
    change(data)
    with pytest.raises(BenchError) as caught:
        record.parse(json.dumps(data).encode(), path=Path("t.json"))
    assert words in caught.value.what
    assert caught.value.fix is not None


def test_twice_the_same_name() -> None:
    with pytest.raises(BenchError, match="twice in one object"):
        record.parse(b'{"format_version": 1, "format_version": 1}', path=Path("t.json"))
