"""Options that several commands take, spelled once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from typer import Option

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


def model_option(default: str = MODEL) -> Any:
    """`--model`."""
    return Option(
        default,
        "--model",
        envvar="QVAE_MODEL",
        metavar="MODEL",
        help="A hub id, a local folder, a .safetensors file, bundled:tiny (offline), or random "
        "weights to measure speed with: random:full, random:full-2.1.",
    )


def size_option(default: Any, help: str) -> Any:  # noqa: A002  # as Typer calls it
    """`--resolution`; a wrong size is reported before anything is loaded."""
    return Option(default, "--resolution", metavar="WxH", parser=Resolution.parse, help=help)


BACKEND_OPTION: Any = Option(
    "auto",
    "--backend",
    envvar="QVAE_BACKEND",
    help="auto: on a GPU tensorrt, else tensorrt_rtx, whichever is installed and runs there; "
    "else onnxruntime.",
)
ENGINE_DIR_OPTION: Any = Option(
    ENGINE_DIR,
    "--engine-dir",
    envvar="QVAE_ENGINE_DIR",
    metavar="DIR",
    help="Where the engines are.",
)
PART_OPTION: Any = Option("both", "--part", help="Which half of the VAE.")
PROFILES_OPTION: Any = Option(
    None, "--profiles", metavar="FILE", help="A TOML file of profiles. [default: the nine]"
)
TIMING_CACHE_OPTION: Any = Option(
    None, "--timing-cache", metavar="FILE", help="A file that keeps kernel timings between builds."
)
PRECISION_OPTION: Any = Option(
    "fp16", "--precision", help="Precision of weights, inputs and outputs."
)
_EVERYWHERE: dict[str, Any] = {
    "as_json": Option(False, "--json", callback=set_json, help="Print the result as JSON."),
    "verbose": Option(
        False,
        *("--verbose", "-v"),
        callback=set_verbose,
        is_eager=True,
        help="More output, with tracebacks.",
    ),
}


def with_common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with --json and --verbose added; their callbacks do the work."""

    @functools.wraps(command)
    def called(*, as_json: bool, verbose: bool, **given: Any) -> Any:
        return command(**given)

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=bool)
        for name, option in _EVERYWHERE.items()
    ]
    called.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    return called


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
