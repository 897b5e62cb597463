"""Frozen dataclasses as JSON objects: written and read by the types of their fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from qvae_trt.files.json_file import Plain, Table
from qvae_trt.profiles import Resolution

_Row = TypeVar("_Row")

#: Marks a field whose own fields stand beside the others: `Annotated[Subject, FLAT]`. Any other
#: mark reads the value: `Annotated[str, Table.sha256]`.
FLAT = "flat"


def write(value: Any) -> Any:
    """What JSON takes of a row: fields by their names, sizes as `WxH`, paths as text."""
    if isinstance(value, Resolution | Path):
        return str(value)
    if hasattr(value, "canonical"):
        return value.canonical()
    if is_dataclass(value):
        row: dict[str, Any] = {}
        kind: Any = type(value)
        for name, hint in _hints(kind).items():
            plain = write(getattr(value, name))
            row |= plain if _mark(hint) is FLAT else {name: plain}
        return row
    if isinstance(value, tuple):
        return [write(item) for item in value]
    if isinstance(value, Mapping):
        return {name: write(item) for name, item in value.items()}
    return value


def read(kind: type[_Row], table: Table, *, strict: bool = False, **given: object) -> _Row:
    """The row in a JSON object, which must have every field.

    Args:
        strict: refuse names that are no field's; else they are left alone.
        given: values of fields that the object does not have.

    Raises: what the table's `fault` makes of the reason.
    """
    row: _Row = _fields(kind, table, strict, given)
    if strict:
        table.end()
    return row


def _fields(kind: Any, table: Table, strict: bool, given: Mapping[str, object]) -> Any:
    values = {}
    for name, hint in _hints(kind).items():
        mark = _mark(hint)
        if name in given:
            values[name] = given[name]
        elif mark is FLAT:
            values[name] = _fields(get_args(hint)[0], table, strict, given)
        else:
            values[name] = (mark or _reader(hint, strict))(table, name)
    return kind(**values)


def _reader(hint: Any, strict: bool) -> Any:
    """The function that reads a value of this type: of a table and a name."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (kind,) = (one for one in inner if one is not NoneType)
        some = _reader(kind, strict)
        return lambda table, name: None if table.value(name) is None else some(table, name)
    if origin is Literal:
        return lambda table, name: table.choice(name, inner)
    if origin is tuple and inner[0] is str:
        return Table.lines
    if origin is tuple:
        return lambda table, name: tuple(
            read(inner[0], item, strict=strict) for item in table.tables(name)
        )
    if origin is Mapping:
        return lambda table, name: _MAPS[inner[1]](table.table(name))
    if is_dataclass(hint) and hint is not Resolution:
        return lambda table, name: read(hint, table.table(name), strict=strict)  # type: ignore[arg-type]
    return _READERS[hint]


def _numbers(table: Table) -> dict[str, float]:
    return {name: table.number(name) for name in table.data}


def _any_number(table: Table, name: str) -> float | None:
    return table.number_or_none(name, least=-math.inf)


def _count(table: Table, name: str) -> int:
    return table.integer(name, least=1)


#: Kinds of values, as the types of fields.
Positive = Annotated[float, Table.positive]
Count = Annotated[int, _count]
AnyNumber = Annotated[float | None, _any_number]
Sha256 = Annotated[str, Table.sha256]

_MAPS: dict[Any, Any] = {str: Table.texts, float: _numbers, Plain: Table.plain}
_READERS: dict[Any, Any] = {
    str: Table.text,
    bool: Table.flag,
    int: Table.integer,
    float: Table.number,
    Resolution: lambda table, name: table.parsed(name, Resolution.parse),
}


def _mark(hint: Any) -> Any:
    return hint.__metadata__[0] if get_origin(hint) is Annotated else None


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)
