"""Suggestions for a mistyped command line: the line to type instead, where it is clear."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from qvae_trt.commands import command_line
from qvae_trt.profiles import MODES, meant_aspect, meant_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _near(word: str, known: Sequence[str]) -> str | None:
    return next(iter(get_close_matches(word.lower(), known, 1, 0.7)), None)


# A word that no option takes, by its look: the option that it is for, and the value as it is spelt.
_BY_LOOK: dict[str, Callable[[str], object]] = {
    "--mode": lambda word: _near(word, MODES),
    "--resolution": meant_size,
    "--aspect": meant_aspect,
    "--engine-dir": lambda word: word if os.path.isdir(word) else None,  # noqa: PTH112  # of any text
}


def instead(context: Any, typed: Sequence[str], error: Any) -> str | None:
    """The whole line of a command, if the error is one of spelling."""
    words = _options(list(typed), error)
    words = _choices(words, error)
    words = _strays(context, words)
    if words == list(typed) or not _complete(context, words):
        return None
    return _line([*context.command_path.split(), *words])


def command_instead(context: Any, typed: Sequence[str]) -> str | None:
    """The line for a command that is not there."""
    first, *rest = typed
    path, known = context.command_path.split(), context.command.commands
    if first in {"help", "version"} and context.parent is None:
        named = path + [word for word in rest[:1] if word in known]
        return _line([*named, f"--{first}"] if first == "help" else [*path, "--version"])
    size = meant_size(first)
    if size is not None and "match" in known:
        return _line([*path, "match", str(size), *rest])
    near = _near(first, list(known))
    return None if near is None else _line([*path, near, *rest])


def _line(words: list[str]) -> str | None:
    """None where a word cannot be typed: a lone surrogate, which only a program can pass."""
    try:
        return command_line(words)
    except UnicodeEncodeError:
        return None


def _options(words: list[str], error: Any) -> list[str]:
    """`--resolutions` -> `--resolution`."""
    wrong, known = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if not known:
        return words
    return [
        known[0] + word[len(wrong) :] if word.partition("=")[0] == wrong else word for word in words
    ]


def _choices(words: list[str], error: Any) -> list[str]:
    """`--mode profile` -> `--mode profiles`."""
    option = getattr(error, "param", None)
    if option is None:
        return words
    # Where an option keeps its choices differs between Typer's releases; its words name them all.
    known = re.findall(r"'([^']*)'", error.message.partition(" is not one of ")[2])

    def near(value: str) -> str:
        return value if value in known else _near(value, known) or value

    fixed = list(words)
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if index > 0 and words[index - 1] in option.opts:
            fixed[index] = near(word)
        elif equals and name in option.opts:
            fixed[index] = f"{name}={near(value)}"
    return fixed


def _strays(context: Any, words: list[str]) -> list[str]:
    """`static` -> `--mode static`."""
    takes = {name: option for option in context.command.params for name in option.opts}
    looks = {name: spell for name, spell in _BY_LOOK.items() if name in takes}
    if "--out" in takes and takes["--out"].required:
        looks["--out"] = lambda word: word  # what looks like nothing else
    for stray in _parsed(context, words)[1]:
        given = _parsed(context, words)[0]
        for name, spell in looks.items():
            is_free = takes[name].multiple or not given.get(takes[name].name)
            value = spell(stray) if is_free else None
            if value is not None:
                words = _placed(context, words, stray, [name, str(value)])
                break
    sized = {"--resolution", "--aspect"} & {word.partition("=")[0] for word in words}
    if sized and "--mode" in takes and _parsed(context, words)[0].get("mode") is None:
        words = ["--mode", "static", *words]
    return words


def _placed(context: Any, words: list[str], stray: str, pair: list[str]) -> list[str]:
    """An option in the stray word's place, which is not where another option takes such a word."""
    before = len(_parsed(context, words)[1])
    for index, word in enumerate(words):
        tried = [*words[:index], *pair, *words[index + 1 :]]
        if word == stray and len(_parsed(context, tried)[1]) < before:
            return tried
    return words


def _parsed(context: Any, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options, as texts, and the words that none takes."""
    from qvae_trt.cli.boundary import ClickException

    try:
        options, rest, _ = context.command.make_parser(context).parse_args(args=list(words))
    except ClickException:
        return {}, []
    return options, rest


def _complete(context: Any, words: list[str]) -> bool:
    options, rest = _parsed(context, words)
    required = (option.name for option in context.command.params if option.required)
    return not rest and all(options.get(name) is not None for name in required)
