"""`qvae encode`, `qvae decode`, `qvae roundtrip`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qvae_trt.cli import output
from qvae_trt.cli.drawing import table
from qvae_trt.cli.options import (
    ENGINE_DIR,
    MODEL,
    BackendOption,
    EngineDirOption,
    JsonOption,
    ModelOption,
    VerboseOption,
)

if TYPE_CHECKING:
    from qvae_trt.pictures import Outcome

ImageArgument = Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG or JPEG of any size.")]
ImageOption = Annotated[Path, typer.Option("--out", help="The picture to write.")]


def encode(
    image: ImageArgument,
    out: Annotated[Path, typer.Option("--out", help="The latents to write, a .safetensors file.")],
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    engine_dir: EngineDirOption = ENGINE_DIR,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Encode a picture to latents."""
    from qvae_trt import pictures

    done = pictures.encode(image, out, model=model, backend=backend, engine_dir=engine_dir)
    _show(done)


def decode(
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A file that qvae encode wrote.")
    ],
    out: ImageOption,
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    engine_dir: EngineDirOption = ENGINE_DIR,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Decode latents to a picture."""
    from qvae_trt import pictures

    done = pictures.decode(latents, out, model=model, backend=backend, engine_dir=engine_dir)
    _show(done)


def roundtrip(
    image: ImageArgument,
    out: ImageOption,
    model: ModelOption = MODEL,
    backend: BackendOption = "auto",
    engine_dir: EngineDirOption = ENGINE_DIR,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Put the original to the left of the result.")
    ] = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Encode a picture and decode it again."""
    from qvae_trt import pictures

    done = pictures.roundtrip(
        image, out, model=model, backend=backend, engine_dir=engine_dir, side_by_side=side_by_side
    )
    _show(done)


def _show(done: Outcome) -> None:
    for run in done.passes:
        for note in run.notes:
            output.tell(f"warning: {note}", style="yellow")
    rows = [
        (
            p.part,
            str(p.resolution),
            p.engine,
            f"{p.seconds:.2f}",
            "" if p.path is None else str(p.path),
        )
        for p in done.passes
    ]
    quality = "" if done.psnr_db is None else f", {done.psnr_db:.1f} dB"
    output.emit(
        done.to_dict(),
        lambda: table(
            ("part", "at", "through", "s", "file"),
            rows,
            title=f"{done.out}: {done.size}{quality}",
        ),
    )
