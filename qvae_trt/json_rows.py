"""Frozen dataclasses as tables in files: written and read by the types of their fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from qvae_trt.errors import QvaeError
from qvae_trt.files.values import Value

#: Marks a field whose own fields stand beside the others: `Annotated[Subject, FLAT]`. Any other
#: mark reads the value: `Annotated[str, Value.sha256]`.
FLAT = "flat"
_READERS: dict[Any, Any] = {
    str: Value.text,
    bool: Value.flag,
    int: Value.integer,
    float: Value.number,
}


def write(value: Any) -> Any:
    """What JSON takes of a row: fields by their names, sizes as `WxH`, paths as text."""
    if hasattr(value, "canonical"):
        return value.canonical()
    if hasattr(value, "parse") or isinstance(value, Path):
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


def read(kind: Any, value: Value, *, strict: bool = False, **given: object) -> Any:
    """The value of a type in a file. A row must have every field.

    Args:
        kind: a dataclass, one with `parse`, which stands as text, or what its fields may be.
        strict: refuse names that are no field's; else they are left alone.
        given: values of fields that a row does not have, or has in another form.

    Raises: what the fault of `value` makes of the reason.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind.__metadata__[0](value)
    if origin in (Union, UnionType):
        (some,) = (one for one in inner if one is not NoneType)
        return None if value.data is None else read(some, value, strict=strict)
    if origin is Literal:
        if not isinstance(value.data, str) or value.data not in inner:
            value.expected(f"one of {', '.join(inner)}")
        return value.data
    if origin is tuple:
        return tuple(read(inner[0], item, strict=strict) for item in value.items())
    if origin is Mapping:
        return {
            read(inner[0], replace(item, data=name)): read(inner[1], item, strict=strict)
            for name, item in value.fields().items()
        }
    if hasattr(kind, "parse"):
        return _parsed(kind, value)
    if is_dataclass(kind):
        if strict:
            value.only(*(name for name in _names(kind) if name not in given))
        return _row(kind, value, strict, given)
    return _READERS[kind](value)


def _row(kind: Any, value: Value, strict: bool, given: Mapping[str, object]) -> Any:
    values = {}
    for name, hint in _hints(kind).items():
        if name in given:
            values[name] = given[name]
        elif _is_flat(hint):
            values[name] = _row(get_args(hint)[0], value, strict, given)
        else:
            values[name] = read(hint, value[name], strict=strict)
    return kind(**values)


def _names(kind: Any) -> Iterator[str]:
    """What the fields of a row are called in the file."""
    for name, hint in _hints(kind).items():
        yield from _names(get_args(hint)[0]) if _is_flat(hint) else (name,)


def _parsed(kind: Any, value: Value) -> Any:
    """What a text stands for; in what no person writes, as `write` writes it."""
    text = value.text()
    try:
        parsed = kind.parse(text)
    except QvaeError as error:
        value.refuse(error.what)
    if not value.by_hand and write(parsed) != text:
        value.expected(write(parsed))
    return parsed


def _is_flat(hint: Any) -> bool:
    return get_origin(hint) is Annotated and hint.__metadata__[0] is FLAT


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
