"""`qvae encode`, `qvae decode`, `qvae roundtrip`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from typer import Argument, Option

from qvae_trt.cli import options, output
from qvae_trt.cli.drawing import figure, records
from qvae_trt.json_rows import write

if TYPE_CHECKING:
    from qvae_trt.pictures import Outcome

_IMAGE: Any = Argument(..., metavar="IMAGE", help="A PNG or JPEG of any size.")
_PICTURE: Any = Option(..., "--out", metavar="FILE", help="The picture to write.")


def encode(
    image: Path = _IMAGE,
    out: Path = Option(..., metavar="FILE", help="The latents to write, a .safetensors file."),
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
) -> None:
    """Encode a picture to latents."""
    from qvae_trt import pictures

    _show(pictures.encode(image, out, model=model, backend=backend, engine_dir=engine_dir))


def decode(
    latents: Path = Argument(..., metavar="LATENTS", help="A file that qvae encode wrote."),
    out: Path = _PICTURE,
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
) -> None:
    """Decode latents to a picture."""
    from qvae_trt import pictures

    _show(pictures.decode(latents, out, model=model, backend=backend, engine_dir=engine_dir))


def roundtrip(
    image: Path = _IMAGE,
    out: Path = _PICTURE,
    model: str = options.model_option(),
    backend: options.BackendChoice = options.BACKEND_OPTION,
    engine_dir: Path = options.ENGINE_DIR_OPTION,
    side_by_side: bool = Option(
        False, "--side-by-side", help="Put the original to the left of the result."
    ),
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
            output.warn(note)
    output.emit(write(done), _draw)


def _draw(data: dict[str, Any]) -> RenderableType:
    psnr_db = data["psnr_db"]
    quality = f", {psnr_db:.1f} dB" if psnr_db is not None and math.isfinite(psnr_db) else ""
    columns: dict[str, Any] = {
        "part": "part",
        "at": "size",
        "through": "engine",
        "s": figure("seconds", ".2f"),
        "file": lambda run: run["path"] or "",
    }
    return records(data["passes"], columns, title=f"{data['out']}: {data['size']}{quality}")
