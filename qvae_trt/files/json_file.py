"""JSON files that are read strictly: what is missing, of another type or out of range is
reported with its place.
"""

from __future__ import annotations

import json
import math
import re
from codecs import BOM_UTF8
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from qvae_trt.errors import printable
from qvae_trt.files.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qvae_trt.files.reading import Fault

_SHA256 = re.compile("[0-9a-f]{64}")
# Above this a count turns to infinity, or an OverflowError, where it is divided or compared.
_MOST = 1 << 62
# Below this a ratio does: it is what a positive number is at least.
_LEAST = 1 / _MOST


def read_object(path: Path, *, most_bytes: int, fault: Fault) -> Json:
    """The JSON object in a file, as `parse_object` takes it. What `fault` is given begins with the
    path.
    """
    raw = read_bytes(path, most_bytes=most_bytes, fault=fault)
    return parse_object(raw, fault=lambda why: fault(f"{path}: {why}"))


def parse_object(raw: bytes, *, fault: Fault) -> Json:
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
    top = Json(data, "", fault)
    top.fields()
    return top


def is_sha256(text: str) -> bool:
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Json:
    """A value of a JSON file, to be read as what it should be.

    Attributes:
        place: `key.profiles[0]`; empty for the whole file.
        fault: makes what is raised of the reason, which begins with the place.
    """

    value: Any
    place: str
    fault: Fault

    def refuse(self, why: str) -> NoReturn:
        raise self.fault(f"{self.place}: {why}" if self.place else why)

    def expected(self, what: str) -> NoReturn:
        self.refuse(f"expected {what}, found {in_words(self.value)}")

    def fields(self) -> dict[str, Json]:
        if not isinstance(self.value, dict):
            self.expected("a JSON object")
        return {name: self._inside(name, value) for name, value in self.value.items()}

    def __getitem__(self, name: str) -> Json:
        return self.fields().get(name) or self._inside(name, None).refuse("missing")

    def only(self, *known: str) -> None:
        for name, item in self.fields().items():
            if name not in known:
                item.refuse("unknown")

    def _inside(self, name: str, value: object) -> Json:
        shown = printable(name, lines=False)
        return Json(value, f"{self.place}.{shown}" if self.place else shown, self.fault)

    def items(self, count: int | None = None) -> list[Json]:
        if not isinstance(self.value, list):
            self.expected("a list")
        if count not in (None, len(self.value)):
            self.refuse(f"expected {count} values, found {len(self.value)}")
        return [Json(v, f"{self.place}[{i}]", self.fault) for i, v in enumerate(self.value)]

    def text(self) -> str:
        # Half a surrogate pair is legal in JSON and cannot be printed.
        value = self.value
        if not isinstance(value, str) or any("\ud800" <= one <= "\udfff" for one in value):
            self.expected("text")
        return value

    def sha256(self) -> str:
        if not is_sha256(self.text()):
            self.expected("64 hexadecimal digits in lower case")
        return self.text()

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            self.expected("true or false")
        return self.value

    def integer(self, least: int = 0, most: float = _MOST) -> int:
        if type(self.value) is not int or not least <= self.value <= most:
            wanted = f"{least} or more" if most == math.inf else f"{least} to {most}"
            self.expected(f"a whole number, {wanted}")
        return self.value

    def version(self) -> int:
        """`format_version`; of any size, so that the caller can say that it is a newer one."""
        return self["format_version"].integer(least=1, most=math.inf)

    def number(self, least: float = 0.0) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.expected("a number")
        if not least <= self.value <= _MOST:
            too_small = least == _LEAST and self.value < least
            self.expected("more than 0" if too_small else f"{least:g} to {_MOST:g}")
        return float(self.value)

    def any_number(self) -> float:
        return self.number(-_MOST)

    def positive(self) -> float:
        return self.number(_LEAST)

    def plain(self) -> str | int | float | bool | None:
        """A text, a number, true, false or null."""
        if isinstance(self.value, int | float) and not isinstance(self.value, bool):
            self.any_number()
        elif self.value is not None and not isinstance(self.value, bool):
            return self.text()
        return self.value


#: Kinds of values, as the types of fields of rows.
Fact = Annotated[str | int | float | bool | None, Json.plain]
Positive = Annotated[float, Json.positive]
AnyNumber = Annotated[float, Json.any_number]
Count = Annotated[int, lambda json: json.integer(1)]
Sha256 = Annotated[str, Json.sha256]


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
