"""JSON files that are read strictly: what is missing, of another type or out of range is
reported with its place.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, NoReturn, TypeVar

from qvae_trt.errors import QvaeError
from qvae_trt.files.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from qvae_trt.files.reading import Fault

_SHA256 = re.compile("[0-9a-f]{64}")
# Above this a count turns to infinity, or an OverflowError, where it is divided or compared.
_MOST = 1 << 62
# Below this a ratio does: it is what a positive number is at least.
_LEAST = 1 / _MOST
_T = TypeVar("_T")

Plain = str | int | float | bool | None


def read_object(path: Path, *, most_bytes: int, fault: Fault) -> Table:
    """The JSON object in a file, as `parse_object` takes it. What `fault` is given begins with the
    path.
    """
    raw = read_bytes(path, most_bytes=most_bytes, fault=fault)
    return parse_object(raw, fault=lambda why: fault(f"{path}: {why}"))


def parse_object(raw: bytes, *, fault: Fault) -> Table:
    """The JSON object in a file's bytes: UTF-8 with or without a byte order mark, no name twice in
    one object.

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
    return Table(data, "", fault)


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


class Table:
    """Typed access to a JSON object. `where` is its place, with a dot at the end: `key.`."""

    def __init__(self, data: object, where: str, fault: Fault) -> None:
        if not isinstance(data, dict):
            place = f"{where.rstrip('.')}: " if where else ""
            raise fault(f"{place}expected a JSON object, found {in_words(data)}")
        self.data: dict[str, object] = data
        self.where = where
        self._fault = fault
        self._read: set[str] = set()

    def refuse(self, name: str, why: str) -> NoReturn:
        raise self._fault(f"{self.where}{name}: {why}")

    def only(self, *known: str) -> None:
        for name in self.data:
            if name not in known:
                self.refuse(ascii(name), "unknown")

    def end(self) -> None:
        """Refuse what was not read."""
        self.only(*self._read)

    def value(self, name: str) -> object:
        self._read.add(name)
        if name not in self.data:
            self.refuse(name, "missing")
        return self.data[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not _printable(value):
            self.refuse(name, f"expected text, found {in_words(value)}")
        return value

    def texts(self) -> dict[str, str]:
        """All of it, where every value is a text."""
        self._check_names()
        return {name: self.text(name) for name in self.data}

    def plain(self) -> dict[str, Plain]:
        """All of it, where every value is a text, a number, true, false or null."""
        self._check_names()
        return {name: self._plain(name) for name in self.data}

    def _check_names(self) -> None:
        for name in self.data:
            if not _printable(name):
                self.refuse(ascii(name), "expected a name that can be printed")

    def _plain(self, name: str) -> Plain:
        value = self.value(name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            self.number(name, least=-math.inf)
            return value
        return self.text(name)

    def sha256(self, name: str) -> str:
        text = self.text(name)
        if not is_sha256(text):
            self.refuse(
                name, f"expected 64 hexadecimal digits in lower case, found {in_words(text)}"
            )
        return text

    def parsed(self, name: str, parse: Callable[[str], _T]) -> _T:
        """A text that `parse` takes, as `str` writes what it makes of it."""
        text = self.text(name)
        try:
            value = parse(text)
        except QvaeError as error:
            self.refuse(name, error.what)
        if str(value) != text:
            self.refuse(name, f"expected {value}, found {in_words(text)}")
        return value

    def flag(self, name: str) -> bool:
        value = self.value(name)
        if not isinstance(value, bool):
            self.refuse(name, f"expected true or false, found {in_words(value)}")
        return value

    def integer(self, name: str, *, least: int = 0, most: float = _MOST) -> int:
        value = self.value(name)
        if type(value) is not int or not least <= value <= most:
            wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
            self.refuse(name, f"expected a whole number, {wanted}, found {in_words(value)}")
        return value

    def version(self) -> int:
        """`format_version`; of any size, so that the caller can say that it is a newer one."""
        return self.integer("format_version", least=1, most=math.inf)

    def number(self, name: str, *, least: float = 0.0) -> float:
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, f"expected a number, found {in_words(value)}")
        least = max(least, -_MOST)
        if not least <= value <= _MOST:
            self.refuse(name, f"expected {least:g} to {_MOST:g}, found {in_words(value)}")
        return float(value)

    def positive(self, name: str) -> float:
        number = self.number(name)
        if number < _LEAST:
            self.refuse(name, f"expected more than 0, found {in_words(number)}")
        return number

    def number_or_none(self, name: str, *, least: float = 0.0) -> float | None:
        return None if self.value(name) is None else self.number(name, least=least)

    def choice(self, name: str, known: Sequence[_T]) -> _T:
        value = self.value(name)
        found = [one for one in known if isinstance(value, str) and value == one]
        if not found:
            wanted = ", ".join(map(str, known))
            self.refuse(name, f"expected one of {wanted}, found {in_words(value)}")
        return found[0]

    def table(self, name: str) -> Table:
        return Table(self.value(name), f"{self.where}{name}.", self._fault)

    def table_or_none(self, name: str) -> Table | None:
        return None if self.value(name) is None else self.table(name)

    def list(self, name: str) -> Sequence[object]:
        items = self.value(name)
        if not isinstance(items, list):
            self.refuse(name, f"expected a list, found {in_words(items)}")
        return items

    def items(self, name: str, count: int) -> Table:
        """A list of `count` values, as a table of the names `[0]`, `[1]` and so on."""
        values = self.list(name)
        if len(values) != count:
            self.refuse(name, f"expected {count} values, found {len(values)}")
        named = {f"[{index}]": value for index, value in enumerate(values)}
        return Table(named, f"{self.where}{name}", self._fault)

    def lines(self, name: str) -> tuple[str, ...]:
        """A list of texts."""
        values = self.list(name)
        items = self.items(name, len(values))
        return tuple(items.text(item) for item in items.data)

    def tables(self, name: str) -> Sequence[Table]:
        return [
            Table(item, f"{self.where}{name}[{index}].", self._fault)
            for index, item in enumerate(self.list(name))
        ]


def _printable(text: str) -> bool:
    """Half a surrogate pair is legal in JSON and cannot be printed."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def in_words(value: object) -> str:
    """A value as JSON has it; of a long one the beginning, of a list or an object the kind."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {in_words(name)} is there twice in one object")
        found[name] = value
    return found
