"""Every parity bound, once.

Images are compared in [-1, 1]; moments as the two tensors they are, mean and log-variance, since
the larger of two joined tensors would hide an error in the smaller. Where a bound depends on a
scale, the scale is the reference's: `PSNR` takes 2.0 as the range of images, and the reference's
max - min for moments; `relative_l2` divides by the reference's norm; `max_abs` of moments is a
share of that range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


#: precision -> output -> bounds; why each has its value is at the end of
#: `data/templates/parity.md.jinja`, which every parity report ends with.
BOUNDS: dict[Precision, dict[Output, Bounds]] = {
    "fp32": {
        "images": Bounds(100.0, 0.999999, 2e-5, 5e-4, 0.01),
        "mean": Bounds(100.0, 0.999999, 2e-5, 1e-4, 0.01),
        "logvar": Bounds(90.0, 0.999999, 2e-5, 1e-4, 0.02),
    },
    "fp16": {
        "images": Bounds(55.0, 0.99997, 7.5e-3, 0.04, 0.5),
        "mean": Bounds(60.0, 0.99997, 7.5e-3, 0.01, 0.5),
        "logvar": Bounds(46.0, 0.99999, 2e-3, 0.02, 0.5),
    },
    "bf16": {
        "images": Bounds(37.0, 0.999, 4e-2, 0.32, 1.5),
        "mean": Bounds(42.0, 0.999, 4e-2, 0.08, 1.5),
        "logvar": Bounds(28.0, 0.9995, 1.6e-2, 0.16, 1.5),
    },
}
