"""`qvae`: the commands, under their names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from qvae_trt.cli import boundary, meant, output
from qvae_trt.cli.commands.folders import lightx2v, triton
from qvae_trt.cli.commands.making import build, export, tune
from qvae_trt.cli.commands.measuring import bench, report, verify
from qvae_trt.cli.commands.pictures import decode, encode, roundtrip
from qvae_trt.cli.commands.showing import doctor, inspect, list_, match, profiles
from qvae_trt.cli.options import resolve_home, warn_of_cpu, with_common
from qvae_trt.commands import command_line
from qvae_trt.version import __version__


class _Suggesting:
    """Puts the line that was meant beside the error of a wrong one."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)  # type: ignore[misc]  # of the class it is mixed into
        except boundary.ClickException as error:
            error.instead = meant.instead(ctx, typed, error)
            raise


class _Command(_Suggesting, TyperCommand):
    """A command: libraries cannot print into its results, and its paths may begin with `~`."""

    def invoke(self, ctx: Any) -> Any:
        _resolve_homes(ctx.params)
        with output.results_only():
            if ctx.params.get("backend") == "auto":
                warn_of_cpu()
            return super().invoke(ctx)


class _Group(_Suggesting, TyperGroup):
    """A command with commands of its own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except boundary.ClickException as error:
            error.instead = meant.command_instead(ctx, args)
            raise


def _resolve_homes(params: dict[str, Any]) -> None:
    """Expand `~`, which a shell leaves as it is in `--engine-dir=~/engines`."""
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
sizes.callback(invoke_without_command=True)(with_common(profiles))

#: An example of each command; in the order in which `qvae --help` lists them.
_COMMANDS: dict[str, Callable[..., int | None]] = {
    "export --out onnx": export,
    "build --mode static --aspect 16:9": build,
    "tune --resolution 1664x928": tune,
    "verify --engine-dir engines": verify,
    "bench --resolution 1664x928": bench,
    "report out/bench --out report.html": report,
    "encode picture.png --out latents.safetensors": encode,
    "decode latents.safetensors --out picture.png": decode,
    "roundtrip picture.png --out again.png": roundtrip,
    "profiles list": list_,
    "profiles match 1600x1200": match,
    "inspect engines/static/1664x928/vae_decoder.trt": inspect,
    "lightx2v --out lightx2v": lightx2v,
    "triton --out models": triton,
    "doctor": doctor,
}
for _example, _function in _COMMANDS.items():
    _name, _, _rest = _example.partition(" ")
    _group = app
    if _name == "profiles":
        _name, _group = _rest.partition(" ")[0], sizes
    _group.command(_name, cls=_Command, epilog=f"Example: qvae {_example}")(with_common(_function))
app.add_typer(sizes, name="profiles", epilog="Example: qvae profiles match 1600x1200")


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qvae {__version__}")
        raise typer.Exit


@app.callback()
def qvae(
    version: bool = typer.Option(
        False, "--version", "-V", callback=_say_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """A faster Qwen-Image VAE: TensorRT engines, and fused kernels that need no build."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    output.settings.as_json = output.settings.verbose = False
    output.settings.command = command_line(["qvae", *arguments])

    def command() -> object:
        code = app(arguments, prog_name="qvae", standalone_mode=False)
        sys.stdout.flush()  # a disk that is full is the command's failure
        return code

    with output.streams():
        return boundary.run(command)
