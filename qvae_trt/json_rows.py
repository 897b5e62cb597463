"""Frozen dataclasses as JSON objects: written and read by the types of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from qvae_trt.errors import QvaeError
from qvae_trt.files.json_file import Json
from qvae_trt.profiles import Resolution

#: Marks a field whose own fields stand beside the others: `Annotated[Subject, FLAT]`. Any other
#: mark reads the value: `Annotated[str, Json.sha256]`.
FLAT = "flat"
_READERS: dict[Any, Any] = {
    str: Json.text,
    bool: Json.flag,
    int: Json.integer,
    float: Json.number,
}


def write(value: Any) -> Any:
    """What JSON takes of a row: fields by their names, sizes as `WxH`, paths as text."""
    if hasattr(value, "canonical"):
        return value.canonical()
    if isinstance(value, Resolution | Path):
        return str(value)
    if is_dataclass(value):
        row: dict[str, Any] = {}
        kind: Any = type(value)
        for name, hint in _hints(kind).items():
            plain = write(getattr(value, name))
            row |= plain if _is_flat(hint) else {name: plain}
        return row
    if isinstance(value, tuple):
        return [write(item) for item in value]
    if isinstance(value, Mapping):
        return {write(name): write(item) for name, item in value.items()}
    return value


def read(kind: Any, json: Json, *, strict: bool = False, **given: object) -> Any:
    """The value of a type in a file. A row must have every field.

    Args:
        kind: a dataclass, one with `parse`, which stands as text, or what its fields may be.
        strict: refuse names that are no field's; else they are left alone.
        given: values of fields that a row does not have, or has in another form.

    Raises: what the fault of `json` makes of the reason.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind.__metadata__[0](json)
    if origin in (Union, UnionType):
        (some,) = (one for one in inner if one is not NoneType)
        return None if json.value is None else read(some, json, strict=strict)
    if origin is Literal:
        if not isinstance(json.value, str) or json.value not in inner:
            json.expected(f"one of {', '.join(inner)}")
        return json.value
    if origin is tuple:
        return tuple(read(inner[0], item, strict=strict) for item in json.items())
    if origin is Mapping:
        return {
            read(inner[0], Json(name, item.place, item.fault)): read(inner[1], item, strict=strict)
            for name, item in json.fields().items()
        }
    if hasattr(kind, "parse"):
        return _parsed(kind, json)
    if is_dataclass(kind):
        if strict:
            json.only(*_names(kind) - given.keys())
        return _row(kind, json, strict, given)
    return _READERS[kind](json)


def _row(kind: Any, json: Json, strict: bool, given: Mapping[str, object]) -> Any:
    values = {}
    for name, hint in _hints(kind).items():
        if name in given:
            values[name] = given[name]
        elif _is_flat(hint):
            values[name] = _row(get_args(hint)[0], json, strict, given)
        else:
            values[name] = read(hint, json[name], strict=strict)
    return kind(**values)


def _names(kind: Any) -> set[str]:
    """What the fields of a row are called in the file."""
    names = set()
    for name, hint in _hints(kind).items():
        names |= _names(get_args(hint)[0]) if _is_flat(hint) else {name}
    return names


def _parsed(kind: Any, json: Json) -> Any:
    """What a text stands for, if it is written as `write` would."""
    try:
        value = kind.parse(json.text())
    except QvaeError as error:
        json.refuse(error.what)
    if write(value) != json.value:
        json.expected(write(value))
    return value


def _is_flat(hint: Any) -> bool:
    return get_origin(hint) is Annotated and hint.__metadata__[0] is FLAT


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
