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
            range.
        bf16_ratio: at most, ||engine - reference|| / ||PyTorch bf16 - reference|| on the same
            input.
    """

    psnr_db: float
    cosine: float
    relative_l2: float
    max_abs: float
    bf16_ratio: float


#: precision -> output -> bounds; why each has its value is in `REASONS`.
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

#: metric -> why its bounds are what they are. Measured means: the same graph in PyTorch on a CPU,
#: rounding to that precision after each layer, with `bundled:tiny` and `random:full`.
REASONS: dict[str, str] = {
    "finite": "one NaN or Inf ruins a picture, so none is allowed",
    "relative_l2": (
        "fp16 rounds to 2^-11; over some thirty layers 1.1e-3 (tiny) and 2.0e-3 (full) were "
        "measured for images and means, 3e-4 for log-variances, whose offset makes their norm "
        "large. TensorRT 8.6, whose fp16 kernels add in fp16 too, was measured on an H200 at "
        "4.3e-3 to 5.4e-3 (full, 1328x1328), a third of what PyTorch's bf16 is off there; the "
        "bound was 5e-3 before that measurement, and leaves it 1.4 times now. bf16 rounds 8 times "
        "coarser than fp16 with float32 sums, and has 8 times what was the bound for that. fp32 "
        "was measured at 5e-7 and has room for Winograd kernels, but none for TF32, which is as "
        "coarse as fp16"
    ),
    "psnr_db": (
        "55 dB over [-1, 1] is an rms error of 0.45 of a step of an 8-bit picture: fp16 must not "
        "change what is stored. Measured 68 to 78 dB. Moments are measured over the reference's "
        "own range, so that an offset does not hide an error. bf16: 18 dB (8 times) less"
    ),
    "cosine": "1 - cosine is half the square of the relative L2: the same bound, seen as an angle",
    "max_abs": (
        "catches what an average hides: a seam, a wrong border, one bad tile. Measured 3.5e-3 of 2 "
        "for images and up to 4e-3 of the range for moments in fp16. 0.04 is five 8-bit steps"
    ),
    "bf16_ratio": (
        "fp16 has three more bits than bf16: an eighth of the error is expected, and 0.10 to 0.13 "
        "was measured. Half is asked for; the yardstick would let 1 pass. A bf16 engine may "
        "round in another order than PyTorch does"
    ),
    "power": (
        "about the check, not the engine: on a flat output no fault would show. A "
        "shift by one pixel and a swap of two channels must each exceed what the bounds let pass"
    ),
}
