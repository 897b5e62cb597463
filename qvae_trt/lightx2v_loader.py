"""What LightX2V's own TensorRT loader opens, by its rules, and what its runner can ask it for.

Read in LightX2V at f8aee98. Its folder names and their sizes are in `profiles/lightx2v.toml`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from qvae_trt.files.values import read_toml
from qvae_trt.profiles import MAX_SIDE, Profile, Resolution, own_file

#: A request may name any side in between (`min_custom_size`, `max_custom_size` of its runner).
LEAST_SIDE, MOST_SIDE = 256, 1664
#: The picture has the sides rounded down to these: two latents on each side make one token.
_GRID = 16
#: Editing makes about one megapixel of a picture, up to 4:1.
_EDIT_PIXELS, _EDIT_RATIO = 1024 * 1024, 4
_RULES: dict[str, Any] = read_toml(own_file("lightx2v.toml")).data


def static_folders() -> dict[str, Resolution]:
    """Its name of a static pair's folder → the size of the pictures that it opens it for."""
    return {name: _size(text) for name, text in _RULES["folders"].items()}


def profile_opts() -> list[Resolution]:
    """The opts that it picks a profile by, in its order; not all are sizes that the VAE takes."""
    return [_size(text) for text in _RULES["profiles"]["opts"]]


def _size(text: str) -> Resolution:
    width, height = map(int, text.split("x"))
    return Resolution(height, width)


def editing_sizes() -> list[Resolution]:
    """Every size of about one megapixel that editing makes of a picture, ratio 1:4 to 4:1, both
    sides rounded to 16 or to 32.
    """
    least, most = math.sqrt(_EDIT_PIXELS / _EDIT_RATIO), math.sqrt(_EDIT_PIXELS * _EDIT_RATIO)
    sizes = set()
    for step in (16, 32):
        for columns in range(round(least / step), round(most / step) + 1):
            # The widths that are rounded to this one have a range of heights.
            narrow, wide = max(least, (columns - 0.5) * step), min(most, (columns + 0.5) * step)
            rows = range(round(_EDIT_PIXELS / wide / step), round(_EDIT_PIXELS / narrow / step) + 1)
            sizes |= {Resolution(row * step, columns * step) for row in rows}
    return sorted(sizes)


@lru_cache(maxsize=1)
def picked_profiles() -> tuple[tuple[Resolution, int], ...]:
    """Every size that its runner can ask for, with the profile that the loader picks: the least
    |Δh| + |Δw|, the first on a tie, whatever the ranges.

    It picks by the sides that a request names, before they are rounded down to the picture's. So
    one size may come with several profiles.
    """
    import numpy as np

    opts = [(opt.height, opt.width) for opt in profile_opts()]
    others = [(size.height, size.width) for size in editing_sizes()]
    sides = np.arange(LEAST_SIDE, MOST_SIDE + 1)
    asked = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    asked = np.concatenate([asked, np.array(others + opts)])
    picked = np.stack([abs(asked - opt).sum(axis=1) for opt in np.array(opts)]).argmin(axis=0)
    shape = (MAX_SIDE, MAX_SIDE, len(opts))
    cells = np.ravel_multi_index((*(asked // _GRID * _GRID).T, picked), shape)
    found = zip(*(axis.tolist() for axis in np.unravel_index(np.unique(cells), shape)), strict=True)
    return tuple((Resolution(height, width), index) for height, width, index in found)


def unheld(profiles: Sequence[Profile]) -> list[tuple[Resolution, int]]:
    """Of :func:`picked_profiles`, those whose profile is not there or does not hold the size."""
    return [
        (size, index)
        for size, index in picked_profiles()
        if index >= len(profiles) or not profiles[index].holds(size)
    ]
