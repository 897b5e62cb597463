"""Options that several commands take, spelled once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qvae_trt.cli.output import set_json, set_verbose, warn
from qvae_trt.commands import build_command
from qvae_trt.errors import EngineError, UsageError
from qvae_trt.profiles import PARTS, Part, Resolution

MODEL = "Qwen/Qwen-Image"
ENGINE_DIR = Path("engines")

PartChoice = Literal["encoder", "decoder", "both"]
BackendChoice = Literal["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"]


def warn_of_cpu() -> None:
    """Warn where `auto` means the CPU although there is a GPU (no TensorRT runs on it)."""
    from qvae_trt import backends
    from qvae_trt.backends import devices

    if devices.gpus() and backends.resolve("auto") == "onnxruntime":
        warn(
            "--backend auto is onnxruntime here, on the CPU, although there is a GPU; "
            "qvae doctor shows the fix"
        )


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="QVAE_MODEL",
        metavar="MODEL",
        help="A hub id, a local folder, a .safetensors file, bundled:tiny (offline) or "
        "random:full (for measuring speed).",
    ),
]
BackendOption = Annotated[
    BackendChoice,
    typer.Option(
        "--backend",
        envvar="QVAE_BACKEND",
        help="auto: on a GPU tensorrt, else tensorrt_rtx, whichever is installed and runs there; "
        "else onnxruntime.",
    ),
]
EngineDirOption = Annotated[
    Path,
    typer.Option(
        "--engine-dir", envvar="QVAE_ENGINE_DIR", metavar="DIR", help="Where the engines are."
    ),
]
PartOption = Annotated[PartChoice, typer.Option("--part", help="Which half of the VAE.")]
ProfilesOption = Annotated[
    Path | None,
    typer.Option("--profiles", metavar="FILE", help="A TOML file of profiles. [default: the nine]"),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache", metavar="FILE", help="A file that keeps kernel timings between builds."
    ),
]
PrecisionOption = Annotated[
    Literal["fp16", "bf16", "fp32"],
    typer.Option("--precision", help="Precision of weights, inputs and outputs."),
]
_JsonOption = Annotated[
    bool, typer.Option("--json", callback=set_json, help="Print the result as JSON.")
]
_VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=set_verbose, is_eager=True, help="More output, with tracebacks."
    ),
]
_EVERYWHERE: dict[str, Any] = {"as_json": _JsonOption, "verbose": _VerboseOption}


def with_common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with --json and --verbose added; their callbacks do the work."""

    @functools.wraps(command)
    def called(*, as_json: bool, verbose: bool, **given: Any) -> Any:
        return command(**given)

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in _EVERYWHERE.items()
    ]
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    return called


def size_option(does: str) -> Any:
    """`--resolution`; a wrong size is reported before anything is loaded."""
    return typer.Option("--resolution", metavar="WxH", parser=Resolution.parse, help=does)


def parse_parts(part: PartChoice) -> tuple[Part, ...]:
    return PARTS if part == "both" else (part,)


def resolve_home(path: Path) -> Path:
    """Expand `~` and `~user`."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: no such user", fix=f"for a folder of that name: ./{path}"
        ) from error


def no_folder(
    engine_dir: Path, size: Resolution, *, backend: BackendChoice, model: str = MODEL
) -> EngineError | None:
    """The error for an engine folder that does not exist; None if it does."""
    fix = build_command("static", size, model=model, backend=backend, engine_dir=engine_dir)
    return None if engine_dir.is_dir() else EngineError(f"{engine_dir}: no such folder", fix=fix)


def need(condition: bool, what: str, *, fix: str | None = None) -> None:
    """UsageError unless the options fit together."""
    if not condition:
        raise UsageError(what, fix=fix)
