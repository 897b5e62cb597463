"""What verification runs on: a photograph, a drawing, and latents; the same on every machine.

Noise alone is a poor input: an engine that is wrong only on edges, flat areas or saturated colours
passes on it, and a flat picture cannot show a shift.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qvae_trt.profiles import Resolution

Array = NDArray[np.float32]
#: What a half of the VAE gives; the encoder's moments as the two tensors that they are.
Output = Literal["images", "mean", "logvar"]

_PHOTOGRAPH = Path(__file__).resolve().parent.parent / "data" / "pictures" / "astronaut.jpg"

#: The names of the inputs; the first one is run at every size.
PICTURES = ("photograph", "edges")
LATENTS = ("encoded", "sampled")


def picture(name: str, resolution: Resolution, *, channels: int = 3) -> Array:
    """A picture of that size: (1, channels, 1, H, W) in [-1, 1], in steps of an 8-bit file.

    `photograph` is the middle of the bundled one, mirrored outwards where it is too small: never
    scaled up, which would leave nothing sharp in it. `edges` is what text and drawings are: hard
    edges, thin lines, pure black, white and saturated colours, drawn from a seed.

    Raises:
        KeyError: an unknown name.
    """
    draw = {"photograph": _photograph, "edges": _edges}[name]
    levels = np.rint(draw(resolution, channels) * 255.0)
    return (levels / 127.5 - 1.0).astype(np.float32)[None, :, None]


def sampled_latents(
    resolution: Resolution, latents: tuple[int, int], *, mean: Sequence[float], std: Sequence[float]
) -> Array:
    """Latents drawn channel by channel from N(mean, std) of the model's config: (1, z, 1, h, w).

    Args:
        latents: (h, w) of a picture of this size.
    """
    draw = _generator("sampled", resolution).standard_normal((len(mean), *latents))
    scaled = draw * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    return scaled.astype(np.float32)[None, :, None]


def _generator(name: str, resolution: Resolution) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name} {resolution}".encode()))


def _photograph(resolution: Resolution, channels: int) -> NDArray[np.float64]:
    with Image.open(_PHOTOGRAPH) as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.float64).transpose(2, 0, 1) / 255.0
    for axis, side in ((1, resolution.height), (2, resolution.width)):
        length = pixels.shape[axis]
        place = (np.arange(side) + max(0, (length - side) // 2)) % (2 * length)
        pixels = pixels.take(np.minimum(place, 2 * length - 1 - place), axis=axis)
    # A fourth channel is alpha: the photograph's own green, so that it has structure as well.
    return np.concatenate([pixels, pixels[1:2]])[:channels]


def _edges(resolution: Resolution, channels: int) -> NDArray[np.float64]:
    rng = _generator("edges", resolution)
    height, width = resolution.height, resolution.width
    planes = np.ones((channels, height, width))
    for _ in range(14):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        bottom = top + int(rng.integers(4, height // 3 + 5))
        right = left + int(rng.integers(4, width // 3 + 5))
        planes[:, top:bottom, left:right] = rng.integers(0, 2, (channels, 1, 1))
    for line in range(16, height - 8, 24):  # rows of letter-like strokes, 8 pixels high
        strokes = rng.random((1, 8, width // 2)) < 0.4
        planes[:, line : line + 8, : width // 2 * 2] *= np.repeat(~strokes, 2, axis=2)
    planes[: max(1, channels // 3), :, rng.integers(0, width, 6)] = 0.0
    return planes
