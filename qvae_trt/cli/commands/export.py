"""`qvae export`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from typer import Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import MIB, figure, records
from qvae_trt.cli.events import show_progress
from qvae_trt.json_rows import write
from qvae_trt.profiles import Precision, Resolution
from qvae_trt.progress import Event, stages


def export(
    out: Path = Option(
        ..., metavar="DIR", help="The folder for vae_encoder.onnx and vae_decoder.onnx."
    ),
    model: str = options.model_option(),
    part: options.PartChoice = options.PART_OPTION,
    precision: Precision = options.PRECISION_OPTION,
    graph: Literal["image", "video"] = Option(
        "image", help="image: the exact 2D graph of one frame; video: Conv3d, as diffusers has it."
    ),
    dynamic: bool | None = Option(
        None, "--dynamic/--static", help="Any size, or the one of --resolution. [default: dynamic]"
    ),
    resolution: Resolution | None = options.size_option(
        None, "The size of a static graph; needed with --static."
    ),
) -> None:
    """Export the VAE to ONNX."""
    from qvae_trt.files.writing import check_writable

    _check_size(dynamic, resolution)
    targets = {name: out / f"vae_{name}.onnx" for name in options.parse_parts(part)}
    for path in targets.values():
        check_writable(path)

    from qvae_trt.export import export_onnx
    from qvae_trt.model import load_model

    loaded = load_model(model)
    how: dict[str, Any] = {"precision": precision, "graph": graph, "resolution": resolution}
    files = []
    with show_progress("export") as on_event:
        for index, (name, path) in enumerate(targets.items()):
            event = partial(Event, index=index, count=len(targets))
            on_event(event(kind="start", text=name))
            progress = stages(on_event, partial(event, item=name))
            files.append(export_onnx(loaded, name, path, progress=progress, **how))
    data = {
        "model": model,
        "precision": precision,
        "graph": graph,
        "files": [{**write(file), "bytes": file.path.stat().st_size} for file in files],
    }
    columns: dict[str, Any] = {"file": "path", "MiB": figure("bytes", unit=MIB), "input": _input}
    output.emit(data, lambda d: records(d["files"], columns))


def _check_size(dynamic: bool | None, resolution: Resolution | None) -> None:
    options.need(
        not (dynamic is True and resolution is not None),
        "--dynamic and --resolution were both given: a dynamic graph has no size",
        fix="leave one of them out",
    )
    options.need(
        not (dynamic is False and resolution is None),
        "--static was given without --resolution: expected the size of the graph",
        fix="for example: --static --resolution 1664x928",
    )


def _input(file: Any) -> str:
    return "x".join("?" if side < 0 else str(side) for side in file["input"]["shape"])
