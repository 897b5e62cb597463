"""`qvae`: the commands, under their names."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from qvae_trt.cli import boundary, meant, output
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
from qvae_trt.cli.options import resolve_home, say_where_auto_leads
from qvae_trt.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Tidy:
    """What knows what a wrong line means."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]  # of the class it is mixed into
        except boundary.ClickException as error:
            error.instead = meant.instead(ctx, typed, error)
            raise


class _Command(_Tidy, TyperCommand):
    """A command whose libraries cannot print into its results, and that knows `~`."""

    def invoke(self, ctx: Any) -> Any:
        _resolve_homes(ctx.params)
        with output.results_only():
            if ctx.params.get("backend") == "auto":
                say_where_auto_leads()
            return super().invoke(ctx)


class _Group(_Tidy, TyperGroup):
    """A command with commands of its own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except boundary.ClickException as error:
            error.instead = meant.command_instead(ctx, args)
            raise


def _resolve_homes(params: dict[str, Any]) -> None:
    """`~` in paths: shells leave it in `--engine-dir=~/engines`, and a folder `~` helps nobody."""
    for name, value in params.items():
        if isinstance(value, Path):
            params[name] = resolve_home(value)
        elif isinstance(value, list | tuple):
            params[name] = [resolve_home(v) if isinstance(v, Path) else v for v in value]


app = typer.Typer(
    name="qvae",
    cls=_Group,
    suggest_commands=False,  # `meant` says the whole line
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
sizes = typer.Typer(cls=_Group, suggest_commands=False, rich_markup_mode=None)

app.command("export", cls=_Command, epilog="Example: qvae export --out onnx")(export.export)
app.command("build", cls=_Command, epilog="Example: qvae build --mode static --aspect 16:9")(
    build.build
)
app.command("tune", cls=_Command, epilog="Example: qvae tune --resolution 1664x928")(tuning.tune)
app.command("verify", cls=_Command, epilog="Example: qvae verify --engine-dir engines")(
    verifying.verify
)
app.command("bench", cls=_Command, epilog="Example: qvae bench --resolution 1664x928")(bench.bench)
app.command("report", cls=_Command, epilog="Example: qvae report out/bench --out report.html")(
    report.report
)
app.command(
    "encode", cls=_Command, epilog="Example: qvae encode picture.png --out latents.safetensors"
)(pictures.encode)
app.command(
    "decode", cls=_Command, epilog="Example: qvae decode latents.safetensors --out picture.png"
)(pictures.decode)
app.command(
    "roundtrip", cls=_Command, epilog="Example: qvae roundtrip picture.png --out again.png"
)(pictures.roundtrip)
sizes.callback(invoke_without_command=True)(profiles.profiles)
sizes.command("list", cls=_Command, epilog="Example: qvae profiles list")(profiles.list_)
sizes.command("match", cls=_Command, epilog="Example: qvae profiles match 1600x1200")(
    profiles.match
)
app.add_typer(sizes, name="profiles", epilog="Example: qvae profiles match 1600x1200")
app.command(
    "inspect", cls=_Command, epilog="Example: qvae inspect engines/static/1664x928/vae_decoder.trt"
)(inspect.inspect)
app.command("lightx2v", cls=_Command, epilog="Example: qvae lightx2v --out lightx2v")(
    lightx2v.lightx2v
)
app.command("triton", cls=_Command, epilog="Example: qvae triton --out models")(triton.triton)
app.command("doctor", cls=_Command, epilog="Example: qvae doctor")(doctor.doctor)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qvae {__version__}")
        raise typer.Exit


@app.callback()
def qvae(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_say_version, is_eager=True, help="Show the version."
        ),
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
