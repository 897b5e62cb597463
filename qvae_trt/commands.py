"""Every command that is suggested to a user, as a line to copy into a shell."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from qvae_trt.errors import printable

_PARTS = ("encoder", "decoder")
#: What else a build is asked for, in this order, and the defaults. Where an environment variable
#: sets one, a hint names the value all the same: its line may be copied to a shell without that.
_OPTIONS = {
    "part": None,
    "model": "Qwen/Qwen-Image",
    "backend": "auto",
    "precision": "fp16",
    "engine_dir": "engines",
}
_SIZE = re.compile(r"[0-9]{1,20}x[0-9]{1,20}")
#: A word in the form of bash for what cannot be printed.
_ESCAPED = re.compile(r"(?<!\S)\$'((?:[^'\\]|\\.)*\\x(?:[^'\\]|\\.)*)'")


def build_command(mode: str, *sizes: object, **asked: object) -> str:
    """The command that builds engines, as a hint to copy.

    Args:
        asked: `part`, `model`, `backend`, `precision`, `engine_dir`; what is None or the default
            is left out.
    """
    return command_line(_build(mode, sizes, asked))


def _build(mode: str, sizes: Iterable[object], asked: Mapping[str, object]) -> list[str]:
    if unknown := asked.keys() - _OPTIONS.keys():
        raise TypeError(f"no option of a build: {', '.join(sorted(unknown))}")
    words = ["qvae", "build", "--mode", mode]
    for size in sizes:
        words += ["--resolution", str(size)]
    for name, default in _OPTIONS.items():
        value, option = asked.get(name), "--" + name.replace("_", "-")
        is_usual = str(value) == default and f"QVAE_{name.upper()}" not in os.environ
        words += [] if value is None or is_usual else [option, str(value)]
    return words


def command_line(words: Iterable[str]) -> str:
    """Words as one line to copy into a shell, also those that hold what cannot be printed."""
    return " ".join(map(_shell_word, words))


def _shell_word(word: str) -> str:
    if printable(word, lines=False) == word:
        return shlex.quote(word)
    # bash, zsh and ksh read escapes in $'…'
    letters = []
    for letter in word:
        if printable(letter, lines=False) != letter:
            is_byte = "\udc80" <= letter <= "\udcff"  # of a name that is no UTF-8
            text = letter.encode(errors="surrogateescape" if is_byte else "surrogatepass")
            letters += [f"\\x{byte:02x}" for byte in text]
        else:
            letters.append(f"\\{letter}" if letter in "\\'" else letter)
    return f"$'{''.join(letters)}'"


def complete(line: str, **asked: object) -> str:
    """A command line with the options that only environment variables set.

    Args:
        asked: `model`, `backend`, `engine_dir`, as they were taken.
    """
    words = [line]
    for name, value in asked.items():
        option = "--" + name.replace("_", "-")
        if f"QVAE_{name.upper()}" in os.environ and option_in(line, option) is None:
            words.append(command_line([option, str(value)]))
    return " ".join(words)


def rebuild_command(
    engine: Path, *, built_by: str = "", force: bool = False, **asked: object
) -> str:
    """The command that builds the engine at a path that `engine_path` made; for another path, the
    general one.

    Args:
        built_by: the command line that made the engine, which knows its level and profiles. Taken
            if it builds into the same folder.
        force: for an engine that `qvae build` would take to be up to date.
        asked: else its `model`, `backend` and `precision`.
    """
    folder = engine.parent
    part = next((part for part in _PARTS if engine.stem.startswith(f"vae_{part}")), None)
    if part is not None and folder.name == "profiles":
        mode, sizes, engine_dir = "profiles", [], folder.parent
    elif part is not None and folder.parent.name == "static" and _SIZE.fullmatch(folder.name):
        mode, sizes, engine_dir = "static", [folder.name], folder.parent.parent
    else:
        return "qvae build --mode MODE --engine-dir DIR"
    words = _words(built_by)
    into = Path(option_in(built_by, "--engine-dir") or "engines")
    if words[:2] != ["qvae", "build"] or into.absolute() != engine_dir.absolute():
        words = _build(mode, sizes, {**asked, "part": part, "engine_dir": engine_dir})
    return command_line([*words, *(["--force"] if force and "--force" not in words else [])])


def _unescaped(word: re.Match[str]) -> str:
    """The same word as `shlex` reads it."""
    escapes, raw = rb"\\(?:x([0-9a-f]{2})|(.))", os.fsencode(word[1])
    raw = re.sub(escapes, lambda m: bytes.fromhex(m[1].decode()) if m[1] else m[2], raw)
    return shlex.quote(os.fsdecode(raw))


def option_in(line: str, option: str) -> str | None:
    """The value of an option in a command line; None without one."""
    words = [
        part
        for word in _words(line)
        for part in (word.split("=", 1) if word.startswith("--") else [word])
    ]
    return next((value for name, value in pairwise(words) if name == option), None)


def _words(line: str) -> list[str]:
    """The words of a command line; none if it is not valid shell syntax."""
    try:
        return shlex.split(_ESCAPED.sub(_unescaped, line))
    except ValueError:
        return []
