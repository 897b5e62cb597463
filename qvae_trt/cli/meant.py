"""Suggestions for a mistyped command line: the line to type instead, where it is clear."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from qvae_trt.commands import command_line
from qvae_trt.profiles import MODES, meant_aspect, meant_size


def _near(word: str, known: Sequence[str]) -> str | None:
    return next(iter(get_close_matches(word.lower(), known, 1, 0.7)), None)


#: What a word that no option takes may be: the option that it is for, and the function that gives
#: its value as it is spelt, None where it does not look like one.
_BY_LOOK: dict[str, Callable[[str], object]] = {
    "--mode": lambda word: _near(word, MODES),
    "--resolution": meant_size,
    "--aspect": meant_aspect,
    "--engine-dir": lambda word: word if os.path.isdir(word) else None,  # noqa: PTH112  # of any text
    "--out": str,  # where it is required
}


def instead(context: Any, typed: Sequence[str], error: Any) -> str | None:
    """The corrected line of a command, if the error is one of spelling."""
    words = _respelt(list(typed), error)
    for stray in _parsed(context, words)[1]:
        words = _placed(context, words, stray)
    options, strays = _parsed(context, words)
    takes = {option.name: option for option in context.command.params}
    has_size = options.keys() & {"resolution", "aspect"}
    if "mode" in takes and options.get("mode") is None and has_size:
        words, options["mode"] = ["--mode", "static", *words], "static"
    missing = [name for name, o in takes.items() if o.required and options.get(name) is None]
    if words == list(typed) or strays or missing:
        return None
    return _line([*context.command_path.split(), *words])


def command_instead(context: Any, typed: Sequence[str]) -> str | None:
    """The corrected line for a command that does not exist."""
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
    """The words as one line; None if a word cannot be typed (a lone surrogate, which only a program
    can pass).
    """
    try:
        return command_line(words)
    except UnicodeEncodeError:
        return None


def _respelt(words: list[str], error: Any) -> list[str]:
    """`--resolutions` -> `--resolution`, `--mode profile` -> `--mode profiles`."""
    wrong, known = getattr(error, "option_name", ""), getattr(error, "possibilities", None)
    if not known:
        # Where an option keeps its choices differs between Typer's releases; its words name them.
        value, _, choices = error.message.partition("' is not one of '")
        wrong, known = value.rpartition("'")[2], choices.rstrip(".'").split("', '")
    right = _near(wrong, known)
    split = [word.split("=") for word in words]
    if right is None or sum(pieces.count(wrong) for pieces in split) != 1:
        return words
    return ["=".join(right if piece == wrong else piece for piece in pieces) for pieces in split]


def _placed(context: Any, words: list[str], stray: str) -> list[str]:
    """Put the option before a stray word (`static` -> `--mode static`), where the parser then
    accepts it.
    """
    takes = {name: option for option in context.command.params for name in option.opts}
    options, strays = _parsed(context, words)
    for name, spell in _BY_LOOK.items():
        option = takes.get(name)
        if option is None or (name == "--out" and not option.required):
            continue
        value = spell(stray) if option.multiple or options.get(option.name) is None else None
        for index, word in enumerate(words if value is not None else ()):
            tried = [*words[:index], name, str(value), *words[index + 1 :]]
            if word == stray and len(_parsed(context, tried)[1]) < len(strays):
                return tried
    return words


def _parsed(context: Any, words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What the parser makes of the words: the options, as texts, and the stray words; nothing if
    the line is wrong.
    """
    from qvae_trt.cli.boundary import ClickException

    try:
        options, rest, _ = context.command.make_parser(context).parse_args(args=list(words))
    except ClickException:
        return {}, []
    return options, rest
