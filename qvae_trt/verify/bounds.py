"""Every parity bound, once, with its reason.

Images are compared in [-1, 1]; moments as the two tensors they are, mean and log-variance, since
the larger of two joined tensors would hide an error in the smaller. Where a bound depends on a
scale, the scale is the reference's: `PSNR` takes 2.0 as the range of images, and the reference's
max - min for moments; `relative_l2` divides by the reference's norm; `max_abs` of moments is a
share of that range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qvae_trt.profiles import Precision

Output = Literal["images", "mean", "logvar"]

#: The data range of images in [-1, 1], and so the peak of their PSNR.
IMAGE_RANGE = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an engine of one precision may differ by, on one of its outputs.

    Attributes:
        psnr_db: at least, with the range as above.
        cosine: at least.
        relative_l2: at most, ||engine - reference|| / ||reference||.
        max_abs: at most, the largest difference: in image units, or as a share of the moments'
        range. bf16_ratio: at most, ||engine - reference|| / ||PyTorch bf16 - reference|| on the
        same input.
    """

    psnr_db: float
    cosine: float
    relative_l2: float
    max_abs: float
    bf16_ratio: float


#: precision -> output -> bounds; why each has its value is in `REASONS`.
BOUNDS: dict[Precision, dict[Output, Bounds]] = {
    "fp32": {
        "images": Bounds(90.0, 0.9999999, 1e-4, 1e-3, 0.05),
        "mean": Bounds(90.0, 0.9999999, 1e-4, 1e-3, 0.05),
        "logvar": Bounds(90.0, 0.9999999, 1e-4, 1e-3, 0.05),
    },
    "fp16": {
        "images": Bounds(52.0, 0.9999, 1e-2, 0.12, 1.0),
        "mean": Bounds(50.0, 0.9999, 1e-2, 0.05, 1.0),
        "logvar": Bounds(50.0, 0.9999, 1e-2, 0.05, 1.0),
    },
    "bf16": {
        "images": Bounds(34.0, 0.995, 8e-2, 0.5, 1.25),
        "mean": Bounds(34.0, 0.995, 8e-2, 0.2, 1.25),
        "logvar": Bounds(34.0, 0.995, 8e-2, 0.2, 1.25),
    },
}

#: metric -> why its bounds are what they are.
REASONS: dict[str, str] = {
    "finite": "one NaN or Inf is a black pixel or a ruined picture: none is allowed",
}
