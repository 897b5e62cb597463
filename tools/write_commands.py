"""Write `docs/commands.md`: every command and option, from the command line itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer
from figures.tables import table

from qvae_trt.cli.app import app

HEAD = """# Commands

Written by `make docs` from the command line's own help. Sizes are `WxH`. Every command takes
`-v`/`--verbose` (tracebacks, more words) and `--json` (the result as JSON). The environment
variables `QVAE_MODEL`, `QVAE_BACKEND` and `QVAE_ENGINE_DIR` are the defaults of `--model`,
`--backend` (not of `qvae lightx2v` and `qvae triton`, where it is `tensorrt`) and `--engine-dir`.

| exit code | means |
| --- | --- |
| 0 | done |
| 1 | an expected failure: a missing file, a broken bound, no GPU for what was asked |
| 2 | wrong usage |
| 3 | a bug |
| 130 | interrupted |
"""
_EVERYWHERE = {"as_json", "verbose"}


def main(out: Path) -> None:
    root = typer.main.get_command(app)
    sections = [HEAD]
    for name, command in sorted(root.commands.items()):  # type: ignore[attr-defined]
        sections.append(describe(f"qvae {name}", command))
        for inner, nested in getattr(command, "commands", {}).items():
            sections.append(describe(f"qvae {name} {inner}", nested))
    out.write_text("\n".join(sections), encoding="utf-8")


def describe(title: str, command: Any) -> str:
    lines = [f"## {title}", "", *(line.strip() for line in command.help.strip().splitlines()), ""]
    rows = [row(parameter) for parameter in command.params if parameter.name not in _EVERYWHERE]
    if rows:
        lines += [*table(("option", "does", "default"), rows, words=3), ""]
    lines += [f"Example: `{command.epilog.removeprefix('Example: ')}`", ""]
    return "\n".join(lines)


def row(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        names = [parameter.metavar or parameter.name]
    spelled = ", ".join(f"`{name}`" for name in names)
    given = parameter.default
    # A default in words stands in the help itself.
    does, _, said = (parameter.help or "").partition("[default: ")
    default = said.removesuffix("]")
    if parameter.required:
        default = "required"
    elif given not in (None, False) and not callable(given):
        default = f"`{given}`"
    return spelled, cell(does.strip()), cell(default)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
