"""Inputs of a parity check: seeded, structured, the same on every machine.

Noise alone is a poor input: an engine that is wrong only on edges, flat areas or saturated
colours passes on it, and a picture of a flat colour cannot show a shift. The drawn pictures have
all of these, differ in every channel, and are made with NumPy alone so that a row can be repeated
from its name.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qvae_trt.profiles import Resolution

Array = NDArray[np.float32]

#: The names of the inputs, the one that is always run first.
PICTURES = ("scene", "edges")
LATENTS = ("encoded", "sampled")


def picture(name: str, resolution: Resolution, *, channels: int = 3) -> Array:
    """A drawn picture: (1, channels, 1, H, W) in [-1, 1], in steps of an 8-bit file.

    `scene` is as a photograph is: shaded shapes over a background whose spectrum falls as 1/f,
    with grain. `edges` is what text and drawings are: hard edges, thin lines, pure black, white
    and saturated colours.

    Raises:
        KeyError: an unknown name.
    """
    draw = {"scene": _scene, "edges": _edges}[name]
    planes = draw(resolution, channels, _generator(name, resolution))
    levels = np.rint(np.clip(planes, 0.0, 1.0) * 255.0)
    return (levels / 127.5 - 1.0).astype(np.float32)[None, :, None]


def sampled_latents(
    resolution: Resolution, *, mean: Sequence[float], std: Sequence[float]
) -> Array:
    """Latents drawn channel by channel from N(mean, std) of the model's config: (1, z, 1, h, w)."""
    height, width = resolution.latent
    draw = _generator("sampled", resolution).standard_normal((len(mean), height, width))
    scaled = draw * np.reshape(std, (-1, 1, 1)) + np.reshape(mean, (-1, 1, 1))
    return scaled.astype(np.float32)[None, :, None]


def _generator(name: str, resolution: Resolution) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name} {resolution}".encode()))


def _grid(resolution: Resolution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.linspace(0.0, 1.0, resolution.height)[:, None]
    columns = np.linspace(0.0, 1.0, resolution.width)[None, :]
    return rows, columns


def _pink(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Noise whose amplitude falls as 1/f, as it does in photographs; mean 0, deviation 1."""
    vertical = np.fft.fftfreq(shape[0])[:, None]
    horizontal = np.fft.rfftfreq(shape[1])[None, :]
    frequency = np.hypot(vertical, horizontal)
    frequency[0, 0] = 1.0
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) / frequency, s=shape)
    noise -= noise.mean()
    return noise / max(float(noise.std()), 1e-9)


def _scene(resolution: Resolution, channels: int, rng: np.random.Generator) -> NDArray[np.float64]:
    rows, columns = _grid(resolution)
    shape = (resolution.height, resolution.width)
    light = _pink(shape, rng)
    planes = np.stack(
        [
            0.45 + 0.12 * light + 0.05 * _pink(shape, rng) + 0.2 * (rows - 0.5)
            for _ in range(channels)
        ]
    )
    for _ in range(9):
        y, x, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), rng.uniform(0.05, 0.18)
        inside = np.clip(
            (radius - np.hypot(rows - y, columns - x)) * min(shape) / 1.5 + 0.5, 0.0, 1.0
        )
        shade = 1.0 - 0.7 * np.hypot(rows - y + 0.3 * radius, columns - x + 0.3 * radius) / (
            2 * radius
        )
        colour = rng.uniform(0.0, 1.0, (channels, 1, 1))
        planes = planes * (1.0 - inside) + inside * colour * shade
    return planes + rng.normal(0.0, 0.015, planes.shape)


def _edges(resolution: Resolution, channels: int, rng: np.random.Generator) -> NDArray[np.float64]:
    height, width = resolution.height, resolution.width
    planes = np.ones((channels, height, width))
    for _ in range(14):
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        bottom, right = (
            top + int(rng.integers(4, height // 3 + 5)),
            left + int(rng.integers(4, width // 3 + 5)),
        )
        planes[:, top:bottom, left:right] = rng.integers(0, 2, (channels, 1, 1))
    for line in range(16, height - 8, 24):  # rows of letter-like strokes, 8 pixels high
        strokes = rng.random((1, 8, width // 2)) < 0.4
        planes[:, line : line + 8, : width // 2 * 2] *= np.repeat(~strokes, 2, axis=2)
    planes[: max(1, channels // 3), :, rng.integers(0, width, 6)] = 0.0
    return planes
