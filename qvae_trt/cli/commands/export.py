"""`qvae export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.events import step_bar
from qvae_trt.cli.options import (
    MODEL,
    JsonOption,
    ModelOption,
    PartOption,
    PrecisionOption,
    VerboseOption,
    need,
    parse_parts,
)
from qvae_trt.profiles import Resolution


def export(
    out: Annotated[
        Path, typer.Option("--out", help="The folder for vae_encoder.onnx and vae_decoder.onnx.")
    ],
    model: ModelOption = MODEL,
    part: PartOption = "both",
    precision: PrecisionOption = "fp16",
    graph: Annotated[
        Literal["image", "video"],
        typer.Option(
            help="image: the exact 2D graph of one frame; video: Conv3d, as diffusers has it."
        ),
    ] = "image",
    dynamic: Annotated[
        bool | None,
        typer.Option(
            "--dynamic/--static", help="Any size, or the one of --resolution. [default: dynamic]"
        ),
    ] = None,
    resolution: Annotated[
        str | None, typer.Option("--resolution", metavar="WxH", help="The size of a static graph.")
    ] = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Export the VAE to ONNX."""
    from qvae_trt.files.writing import check_writable

    size = _static_size(dynamic, resolution)
    targets = {name: out / f"vae_{name}.onnx" for name in parse_parts(part)}
    for path in targets.values():
        check_writable(path)

    from qvae_trt.export import export_onnx
    from qvae_trt.model import load_model

    loaded = load_model(model)
    files = []
    for name, path in targets.items():
        with step_bar(f"export {name}") as progress:
            files.append(
                export_onnx(
                    loaded,
                    name,
                    path,
                    precision=precision,
                    graph=graph,
                    resolution=size,
                    progress=progress,
                )
            )
    rows = [
        {
            "path": str(file.path),
            "bytes": file.path.stat().st_size,
            "sha256": file.sha256,
            "input": {
                "name": file.input.name,
                "dtype": file.input.dtype,
                "shape": list(file.input.shape),
            },
            "output": {
                "name": file.output.name,
                "dtype": file.output.dtype,
                "shape": list(file.output.shape),
            },
        }
        for file in files
    ]
    output.emit(
        {"model": model, "precision": precision, "graph": graph, "files": rows},
        lambda: table(
            ("file", "MiB", "input", "output"),
            [
                (
                    str(f.path),
                    f"{f.path.stat().st_size / 2**20:.1f}",
                    _shape(f.input.shape),
                    _shape(f.output.shape),
                )
                for f in files
            ],
        ),
    )


def _static_size(dynamic: bool | None, resolution: str | None) -> Resolution | None:
    need(
        not (dynamic is True and resolution is not None),
        "--dynamic and --resolution were both given: a dynamic graph has no size",
        fix="leave one of them out",
    )
    need(
        not (dynamic is False and resolution is None),
        "--static was given without --resolution: expected the size of the graph",
        fix="for example: --static --resolution 1664x928",
    )
    return None if resolution is None else Resolution.parse(resolution)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join("?" if side < 0 else str(side) for side in shape)
