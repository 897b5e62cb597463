"""Options that several commands take, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qvae_trt.cli.output import set_json, set_verbose, tell
from qvae_trt.commands import build_command
from qvae_trt.errors import EngineError, UsageError
from qvae_trt.profiles import PARTS, Part, Resolution

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "Qwen/Qwen-Image"
ENGINE_DIR = Path("engines")

PartChoice = Literal["encoder", "decoder", "both"]
BackendChoice = Literal["auto", "tensorrt", "tensorrt_rtx", "onnxruntime"]


def say_where_auto_leads() -> None:
    """Who has a GPU and no TensorRT would build for the CPU, and never hear of it."""
    from qvae_trt import backends
    from qvae_trt.backends import devices

    if devices.gpus() and backends.resolve("auto") == "onnxruntime":
        tell(
            "warning: --backend auto is onnxruntime here, on the CPU, although there is a GPU; "
            "qvae doctor shows the fix",
            style="yellow",
        )


def check_sizes(given: Any) -> Any:
    """As an option's callback: a wrong size is said before anything is loaded."""
    parse_resolutions([given] if isinstance(given, str) else given)
    return given


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
JsonOption = Annotated[
    bool, typer.Option("--json", callback=set_json, help="Print the result as JSON.")
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", callback=set_verbose, is_eager=True, help="More output, with tracebacks."
    ),
]


def parse_resolutions(texts: Sequence[str] | None) -> tuple[Resolution, ...]:
    """`["1664x928", …]` in order, each once."""
    return tuple(dict.fromkeys(Resolution.parse(text) for text in texts or ()))


def parse_parts(part: PartChoice) -> tuple[Part, ...]:
    return PARTS if part == "both" else (part,)


def resolve_home(path: Path) -> Path:
    """`~` and `~user` at its beginning."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{path}: no such user", fix=f"for a folder of that name: ./{path}"
        ) from error


def no_folder(
    engine_dir: Path, size: Resolution, *, backend: BackendChoice, model: str = MODEL
) -> EngineError | None:
    """What to say of an engine folder that is not there; None if it is."""
    if engine_dir.is_dir():
        return None
    command = build_command(
        "static",
        size,
        model=None if model == MODEL else model,
        backend=backend,
        engine_dir=engine_dir,
    )
    return EngineError(f"{engine_dir}: no such folder", fix=command)


def need(condition: bool, what: str, *, fix: str | None = None) -> None:
    """UsageError unless the options fit together."""
    if not condition:
        raise UsageError(what, fix=fix)
