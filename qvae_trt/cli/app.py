"""`qvae`: the commands, under their names."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from qvae_trt.cli import boundary, output
from qvae_trt.cli.commands import (
    bench,
    build,
    doctor,
    export,
    inspect,
    lightx2v,
    pictures,
    profiles,
    report,
    triton,
)
from qvae_trt.cli.commands import tune as tuning
from qvae_trt.cli.commands import verify as verifying
from qvae_trt.cli.options import resolve_home
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Tidy:
    """A command whose libraries cannot print into its results, and that knows `~`."""

    def invoke(self, ctx: Any) -> Any:
        _resolve_homes(ctx.params)
        with output.results_only():
            return super().invoke(ctx)  # type: ignore[misc]  # of the class it is mixed into


class _Command(_Tidy, TyperCommand):
    """A command."""


class _Group(_Tidy, TyperGroup):
    """A command with commands of its own."""


def _resolve_homes(params: dict[str, Any]) -> None:
    """`~` in paths: shells leave it in `--engine-dir=~/engines`, and a folder `~` helps nobody."""
    for name, value in params.items():
        if isinstance(value, Path):
            params[name] = resolve_home(value)
        elif isinstance(value, list | tuple):
            params[name] = [resolve_home(v) if isinstance(v, Path) else v for v in value]


app = typer.Typer(
    name="qvae",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
sizes = typer.Typer(cls=_Group, rich_markup_mode=None)

app.command("export", cls=_Command)(export.export)
app.command("build", cls=_Command)(build.build)
app.command("tune", cls=_Command)(tuning.tune)
app.command("verify", cls=_Command)(verifying.verify)
app.command("bench", cls=_Command)(bench.bench)
app.command("report", cls=_Command)(report.report)
app.command("encode", cls=_Command)(pictures.encode)
app.command("decode", cls=_Command)(pictures.decode)
app.command("roundtrip", cls=_Command)(pictures.roundtrip)
sizes.callback(invoke_without_command=True)(profiles.profiles)
sizes.command("list", cls=_Command)(profiles.list_)
sizes.command("match", cls=_Command)(profiles.match)
app.add_typer(sizes, name="profiles")
app.command("inspect", cls=_Command)(inspect.inspect)
app.command("lightx2v", cls=_Command)(lightx2v.lightx2v)
app.command("triton", cls=_Command)(triton.triton)
app.command("doctor", cls=_Command)(doctor.doctor)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qvae {__version__}")
        raise typer.Exit


@app.callback()
def qvae(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """TensorRT engines of the Qwen-Image VAE: export, build, compare with PyTorch, measure, use."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    output.settings.as_json = output.settings.verbose = False
    output.settings.command = shlex.join(["qvae", *arguments])

    def command() -> object:
        code = app(arguments, prog_name="qvae", standalone_mode=False)
        sys.stdout.flush()  # a disk that is full is the command's failure
        return code

    with output.streams():
        return boundary.run(command)
