"""TOML files whose faults are told with their line."""

from __future__ import annotations

import re
import tomllib
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from qvae_trt.errors import ProfileError
from qvae_trt.files.reading import read_bytes

MAX_FILE_BYTES = 1 << 20
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]#]*?)\s*\]")
_KEY = re.compile(r"\s*(\"[^\"]*\"|'[^']*'|[\w-]+)\s*[=.]")


class TomlFile:
    """A parsed file that can still say on which line a value stands."""

    def __init__(self, path: Path) -> None:
        self.path = path
        raw = read_bytes(path, most_bytes=MAX_FILE_BYTES, fault=ProfileError)
        try:
            self.text = raw.removeprefix(BOM_UTF8).decode()
        except UnicodeDecodeError as error:
            self.fail_at(raw[: error.start].count(b"\n") + 1, "not UTF-8")
        try:
            self.data: dict[str, object] = tomllib.loads(self.text)
        except RecursionError:
            self.fail_at(1, "nested too deeply")
        except ValueError as error:  # TOMLDecodeError, or an int of more digits than Python reads
            message = str(error)
            line = self.text.rstrip().count("\n") + 1  # for "at end of document"
            if at := re.search(r" \(at line (\d+), column \d+\)$", message):
                line = int(at[1])
            elif digits := re.search(r"[0-9_]{4300,}", self.text):
                line, message = self.text.count("\n", 0, digits.start()) + 1, "a number too long"
            message = re.sub(r" \(at (line \d+, column \d+|end of document)\)$", "", message)
            self.fail_at(line, message)

    def fail_at(self, line: int, what: str) -> NoReturn:
        raise ProfileError(f"{self.path}, line {line}: {what}")

    def fail(self, what: str, *where: str) -> NoReturn:
        self.fail_at(self.line(*where), what)

    def line(self, table: str = "", key: str = "") -> int:
        """The line of a key in a table, else of the table's header, else 1; `profile.2` is the
        third `[[profile]]`.
        """
        lines = dict(reversed(list(self._places())))
        places = ((table, key), (table, ""), (table.partition(".")[0], ""), (key, ""))
        return next((lines[place] for place in places if place in lines), 1)

    def _places(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Tables and keys with their lines.

        tomllib gives no positions. This reads `key =` and header lines, which is how these files
        are written; in one written otherwise (inline tables, multi-line strings) the line told is
        that of the nearest one above.
        """
        table, counts = "", Counter[str]()
        for number, text in enumerate(self.text.split("\n"), 1):
            if header := _HEADER.match(text):
                table = header[2].strip("\"'")
                yield (table, ""), number
                if header[1] == "[[":
                    counts[table] += 1
                    table = f"{table}.{counts[table] - 1}"
                    yield (table, ""), number
            elif name := _KEY.match(text):
                key = name[1].strip("\"'")
                yield (table, key), number
                if not table:
                    yield (key, ""), number

    def only_keys(self, table: Mapping[str, object], known: Sequence[str], where: str) -> None:
        for key in table:
            if key not in known:
                self.fail(f"unknown key {quoted(key)}, expected {', '.join(known)}", where, key)


def quoted(text: str) -> str:
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return repr(shown)
