"""Overlapping tiles, blended, for pictures that do not fit in memory at once.

The convolutions see all they need well inside the overlap; the attention layer sees only its tile,
which is why a tiled picture is near the whole one and not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """Size of a tile and of its overlap with the next, in pixels."""

    height: int
    width: int
    overlap_height: int
    overlap_width: int


def square_tile(side: int, overlap: int) -> Tile:
    """The same on both axes."""
    return Tile(height=side, width=side, overlap_height=overlap, overlap_width=overlap)


def usual_overlap(side: int) -> int:
    """An overlap that keeps seams out of tiles of this side, both in pixels.

    A quarter, of which 128 are enough.
    """
    return min(128, side // 4)


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of one length begin: the first at 0, the last flush with the end, evenly between.

    All in the same unit. Neighbours share at least `overlap`. A side no longer than a tile takes
    one, of its own length.
    """
    if length <= tile:
        return [0]
    step = max(1, tile - overlap)
    count = -(-(length - tile) // step) + 1
    return [(length - tile) * i // (count - 1) for i in range(count)]


def tiled(
    run: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    *,
    part: Literal["encoder", "decoder"],
    tile: Tile,
    scale: int,
) -> torch.Tensor:
    """`run` on overlapping tiles of `x`, blended linearly in float32.

    Args:
        run: (1, C, 1, h, w) → (1, C', 1, s h, s w) for a decoder, (1, C', 1, h/s, w/s) for an
            encoder.
        x: (1, C, 1, H, W). Pixels past the last multiple of s, which have no latent of their own,
            are seen by the last tile: it is that much larger.
        part: which of the two.
        tile: in pixels, for either part.
        scale: s, how many pixels of a side one latent stands for.

    Returns:
        What `run(x)` would be, in its dtype, to within the attention layer's view.
    """
    # Everything is planned in latents, so that tiles start where latents start.
    to_x, to_y = (scale, 1) if part == "encoder" else (1, scale)
    high, wide = x.shape[3] // to_x, x.shape[4] // to_x
    tile_high, tile_wide = min(tile.height // scale, high), min(tile.width // scale, wide)
    overlap_high, overlap_wide = tile.overlap_height // scale, tile.overlap_width // scale
    total: torch.Tensor | None = None
    weight = torch.zeros((), device=x.device)
    dtype = x.dtype
    for top in starts(high, tile_high, overlap_high):
        for left in starts(wide, tile_wide, overlap_wide):
            bottom, right = top + tile_high, left + tile_wide
            until_y = x.shape[3] if bottom == high else bottom * to_x
            until_x = x.shape[4] if right == wide else right * to_x
            y = run(x[..., top * to_x : until_y, left * to_x : until_x])
            if total is None:
                dtype = y.dtype
                total = torch.zeros(
                    (*y.shape[:3], high * to_y, wide * to_y), dtype=torch.float32, device=y.device
                )
                weight = torch.zeros(total.shape[3:], dtype=torch.float32, device=y.device)
            rows, columns = slice(top * to_y, bottom * to_y), slice(left * to_y, right * to_y)
            window = torch.outer(
                _window(tile_high * to_y, overlap_high * to_y, top > 0, bottom < high),
                _window(tile_wide * to_y, overlap_wide * to_y, left > 0, right < wide),
            ).to(y.device)
            total[..., rows, columns] += y.float() * window
            weight[rows, columns] += window
    if total is None:
        raise ValueError("no tile: an empty tensor")
    return (total / weight).to(dtype)


def _window(length: int, overlap: int, before: bool, after: bool) -> torch.Tensor:
    """1 inside; towards each inner edge it falls to almost nothing before the quarter nearest the
    edge.

    That quarter is where a tile's zero padding is felt most. The neighbour counts there, since both
    halves of an overlap mirror each other; `tiled` divides by the sum of the windows, which nowhere
    is 0.
    """
    margin = overlap // 4
    slope = max(1, overlap - 2 * margin)
    ramp = ((torch.arange(length, dtype=torch.float32) + 0.5 - margin) / slope).clamp(1e-4, 1.0)
    window = torch.ones(length)
    if before:
        window *= ramp
    if after:
        window *= ramp.flip(0)
    return window
