"""Values from files, read strictly: what is missing, of another type or out of range is refused
with its place.

JSON may have no name twice in one object, and no number that JSON does not have; the faults of
TOML, which people write, are told with their line.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from bisect import bisect_left
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from qvae_trt.errors import ProfileError, QvaeError, printable
from qvae_trt.files.reading import read_bytes

#: From the reason for which a file is refused to what is raised.
Fault = Callable[[str], QvaeError]
#: The names and indices that lead to a value.
Keys = tuple[str | int, ...]

_SHA256 = re.compile("[0-9a-f]{64}")
# Above this a count turns to infinity, or an OverflowError, where it is divided or compared.
_MOST = 1 << 62
# Below this a ratio does: it is what a positive number is at least.
_LEAST = 1 / _MOST
_TABLE = "a table of names and values"


def place_of(keys: Keys) -> str:
    """`cells[0].timing: `, which a reason follows; empty for the whole file."""
    steps = (f"[{k}]" if isinstance(k, int) else f".{printable(k[:60], lines=False)}" for k in keys)
    return "".join(steps).removeprefix(".") + (": " if keys else "")


@dataclass(frozen=True, slots=True)
class Value:
    """A value in a file, to be read as what it should be.

    Attributes:
        data: as the parser gave it.
        fault: makes what is raised of its place and the reason.
        keys: where it is.
        where: its place in words.
        by_hand: people write such files.
    """

    data: Any
    fault: Fault
    keys: Keys = ()
    where: Callable[[Keys], str] = place_of
    by_hand: bool = False

    def refuse(self, why: str) -> NoReturn:
        raise self.fault(self.where(self.keys) + why)

    def expected(self, what: str) -> NoReturn:
        self.refuse(f"expected {what}, found {in_words(self.data)}")

    def inside(self, key: str | int, data: object) -> Value:
        return Value(data, self.fault, (*self.keys, key), self.where, self.by_hand)

    def fields(self) -> dict[str, Value]:
        if not isinstance(self.data, dict):
            self.expected(_TABLE)
        return {name: self.inside(name, data) for name, data in self.data.items()}

    def items(self, count: int | None = None) -> list[Value]:
        if not isinstance(self.data, list):
            self.expected("a list")
        if count not in (None, len(self.data)):
            self.refuse(f"expected {count} values, found {len(self.data)}")
        return [self.inside(index, data) for index, data in enumerate(self.data)]

    def __getitem__(self, name: str) -> Value:
        if not isinstance(self.data, dict):
            self.expected(_TABLE)
        if name not in self.data:
            self.inside(name, None).refuse("missing")
        return self.inside(name, self.data[name])

    def only(self, *known: str) -> None:
        for name, value in self.fields().items():
            if name not in known:
                value.refuse(f"unknown, expected {', '.join(known)}")

    def text(self) -> str:
        # Half a surrogate pair is legal in JSON and cannot be printed.
        if not isinstance(self.data, str) or any("\ud800" <= one <= "\udfff" for one in self.data):
            self.expected("text")
        return self.data

    def sha256(self) -> str:
        if not is_sha256(self.text()):
            self.expected("64 hexadecimal digits in lower case")
        return self.text()

    def flag(self) -> bool:
        if not isinstance(self.data, bool):
            self.expected("true or false")
        return self.data

    def integer(self, least: int = 0, most: float = _MOST) -> int:
        if type(self.data) is not int or not least <= self.data <= most:
            wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
            self.expected(f"a whole number, {wanted}")
        return self.data

    def check_version(self, newest: int) -> None:
        """Whether `format_version` is one that can be read."""
        version = self["format_version"]
        if version.integer(least=1, most=math.inf) > newest:
            found = in_words(version.data)
            version.refuse(
                f"{found}, expected at most {newest}: written by a newer qvae, which reads it"
            )

    def number(self, least: float = 0.0) -> float:
        if isinstance(self.data, bool) or not isinstance(self.data, int | float):
            self.expected("a number")
        if not least <= self.data <= _MOST:
            too_small = least == _LEAST and self.data < least
            self.expected("more than 0" if too_small else f"{least:g} to {_MOST:g}")
        return float(self.data)

    def any_number(self) -> float:
        return self.number(-_MOST)

    def positive(self) -> float:
        return self.number(_LEAST)

    def plain(self) -> str | int | float | bool | None:
        """A text, a number, true, false or null."""
        if isinstance(self.data, int | float) and not isinstance(self.data, bool):
            self.any_number()
        elif self.data is not None and not isinstance(self.data, bool):
            return self.text()
        return self.data


#: Kinds of values, as the types of fields of rows.
Fact = Annotated[str | int | float | bool | None, Value.plain]
Positive = Annotated[float, Value.positive]
AnyNumber = Annotated[float, Value.any_number]
Count = Annotated[int, lambda value: value.integer(1)]
Sha256 = Annotated[str, Value.sha256]


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


def in_words(data: object) -> str:
    """A value as JSON has it; of a long one the beginning, of a list or an object the kind."""
    if isinstance(data, list | dict):
        return "a list" if isinstance(data, list) else "an object"
    text = json.dumps(data, default=repr, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


# --- files ---------------------------------------------------------------------------------------

#: Of a TOML file: tomllib takes a second for as much, and for the line of a fault many times that.
_MOST_TOML_BYTES = 1 << 20


def read_object(path: Path, *, fault: Fault) -> Value:
    """The JSON object in a file, as `parse_object` takes it. What `fault` is given begins with the
    path.
    """
    raw = read_bytes(path, fault=fault)
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


def read_toml(path: Path) -> Value:
    """What is in a file.

    Raises:
        ProfileError: it cannot be read or is no TOML; names the file and the line.
    """

    def fail_at(line: int, what: str) -> NoReturn:
        raise ProfileError(f"{path}, line {line}: {what}")

    raw = read_bytes(path, fault=ProfileError, most_bytes=_MOST_TOML_BYTES).removeprefix(BOM_UTF8)
    try:
        text = raw.decode().replace("\r\n", "\n")
        data = tomllib.loads(text)
    except UnicodeDecodeError as error:
        fail_at(raw[: error.start].count(b"\n") + 1, "not UTF-8")
    except RecursionError:
        fail_at(1, "nested too deeply")
    except ValueError as error:  # TOMLDecodeError, or an int of more digits than Python reads
        message, _, place = str(error).rstrip(")").partition(" (at ")
        line = text.rstrip().count("\n") + 1  # for "at end of document"
        if at := re.search(r"line (\d+)", place):
            line = int(at[1])
        elif digits := re.search(r"[0-9_]{4300,}", text):
            line, message = text.count("\n", 0, digits.start()) + 1, "a number too long"
        fail_at(line, message)

    def where(keys: Keys) -> str:
        return f", line {_line(text, keys)}: {place_of(keys)}"

    return Value(data, lambda why: ProfileError(f"{path}{why}"), where=where, by_hand=True)


def _line(text: str, keys: Keys) -> int:
    """The line at which a value stands, or what holds it where it is missing.

    tomllib gives no positions. Of the lines with its name, it is the first after which the file,
    cut off there, has it; of a value of several lines, where the last of those begins.
    """
    lines = text.split("\n")

    def has(count: int) -> bool:
        try:
            data = tomllib.loads("\n".join(lines[:count]))
            for key in keys:
                data = data[key]  # type: ignore[index]
        except (ValueError, LookupError, TypeError):  # TypeError: no table
            return False
        return True

    while not has(len(lines)):
        keys = keys[:-1]
    name = next((key for key in reversed(keys) if isinstance(key, str)), "")
    # No line has a name that is written with an escape.
    ends = [count for count, line in enumerate(lines, 1) if name in line] or [1]
    return ends[min(bisect_left(ends, True, key=has), len(ends) - 1)]
