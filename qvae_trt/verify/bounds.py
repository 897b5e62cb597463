"""The parity bounds, as `data/bounds.toml` has them.

Images are compared in [-1, 1]; moments as the two tensors they are, mean and log-variance, since
the larger of two joined tensors would hide an error in the smaller. Where a bound depends on a
scale, the scale is the reference's: `PSNR` takes 2.0 as the range of images, and the reference's
max - min for moments; `relative_l2` divides by the reference's norm; `max_abs` of moments is a
share of that range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qvae_trt.files.toml_file import read_toml
from qvae_trt.json_rows import read
from qvae_trt.profiles import Precision

Output = Literal["images", "mean", "logvar"]

#: The data range of images in [-1, 1], and so the peak of their PSNR.
IMAGE_RANGE = 2.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """How far a result is from the reference. `max_abs` in the tensor's own units."""

    psnr_db: float
    cosine: float
    relative_l2: float
    max_abs: float


@dataclass(frozen=True, slots=True)
class Bounds(Metrics):
    """What an engine of one precision may differ by, on one of its outputs.

    Attributes:
        psnr_db: at least, with the range as above.
        cosine: at least.
        relative_l2: at most, ||engine - reference|| / ||reference||.
        max_abs: at most, the largest difference: in image units, or as a share of the moments'
            range.
        bf16_ratio: at most, ||engine - reference|| / ||PyTorch bf16 - reference|| on the same
            input.
    """

    bf16_ratio: float


_FILE = Path(__file__).resolve().parent.parent / "data" / "bounds.toml"
BOUNDS: dict[Precision, dict[Output, Bounds]] = read(
    Mapping[Precision, Mapping[Output, Bounds]], read_toml(_FILE), strict=True
)
