"""JSON files, read strictly: no name twice in one object, and no number that JSON does not have."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

from qvae_trt.files.reading import read_bytes
from qvae_trt.files.values import Fault, Value, in_words


def read_object(path: Path, *, most_bytes: int, fault: Fault) -> Value:
    """The JSON object in a file, as `parse_object` takes it. What `fault` is given begins with the
    path.
    """
    raw = read_bytes(path, most_bytes=most_bytes, fault=fault)
    return parse_object(raw, fault=lambda why: fault(f"{path}: {why}"))


def parse_object(raw: bytes, *, fault: Fault) -> Value:
    """The JSON object in a file's bytes: UTF-8 with or without a byte order mark.

    Raises: what `fault` makes of the reason.
    """
    try:
        data: object = json.loads(
            raw.removeprefix(BOM_UTF8).decode(), parse_constant=_no_number, object_pairs_hook=_once
        )
    except RecursionError as error:
        raise fault("nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and ints too long to read
        raise fault(str(error)) from error
    top = Value(data, fault)
    top.fields()
    return top


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {in_words(name)} is there twice in one object")
        found[name] = value
    return found
