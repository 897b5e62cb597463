"""TOML files whose faults are told with their line."""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from codecs import BOM_UTF8
from pathlib import Path
from typing import NoReturn

from qvae_trt.errors import ProfileError
from qvae_trt.files.reading import read_bytes
from qvae_trt.files.values import Keys, Value, place_of

MAX_FILE_BYTES = 1 << 20


def read_toml(path: Path) -> Value:
    """What is in a file.

    Raises:
        ProfileError: it cannot be read or is no TOML; names the file and the line.
    """

    def fail_at(line: int, what: str) -> NoReturn:
        raise ProfileError(f"{path}, line {line}: {what}")

    raw = read_bytes(path, most_bytes=MAX_FILE_BYTES, fault=ProfileError).removeprefix(BOM_UTF8)
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
