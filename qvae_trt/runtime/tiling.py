"""Overlapping tiles, blended, for pictures that do not fit in memory at once.

The convolutions see all they need well inside the overlap; the attention layer sees only its tile,
which is why a tiled picture is near the whole one and not equal to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
    down = _spans(x.shape[3], to_x, to_y, tile.height // scale, tile.overlap_height // scale)
    across = _spans(x.shape[4], to_x, to_y, tile.width // scale, tile.overlap_width // scale)
    total: Any = None  # made with the first tile, which tells its channels
    for rows, rows_out, of_rows in down:
        for columns, columns_out, of_columns in across:
            y = run(x[..., rows, columns])
            if total is None:
                sides = down[-1][1].stop, across[-1][1].stop
                total = torch.zeros((*y.shape[:3], *sides), dtype=torch.float32, device=y.device)
            window = torch.outer(of_rows, of_columns).to(y.device)
            total[..., rows_out, columns_out] += y.float() * window
    return total.to(y.dtype)


def _spans(
    length: int, to_x: int, to_y: int, tile: int, overlap: int
) -> list[tuple[slice, slice, torch.Tensor]]:
    """The tiles of one axis of `length`: where each is in the input and in the output, and how much
    of each place is its own. `tile` and `overlap` are in latents, of which one is `to_x` of the
    input and `to_y` of the output.
    """
    latents = length // to_x
    tile = min(tile, latents)
    spans = []
    whole = torch.zeros(latents * to_y)
    for start in starts(latents, tile, overlap):
        end = start + tile
        x = slice(start * to_x, length if end == latents else end * to_x)
        y = slice(start * to_y, end * to_y)
        window = _window(tile * to_y, overlap * to_y, start > 0, end < latents)
        whole[y] += window
        spans.append((x, y, window))
    return [(x, y, window / whole[y]) for x, y, window in spans]


def _window(length: int, overlap: int, before: bool, after: bool) -> torch.Tensor:
    """1 inside; towards each inner edge it falls to almost nothing before the quarter nearest the
    edge.

    That quarter is where a tile's zero padding is felt most. The neighbour counts there, since both
    halves of an overlap mirror each other; `_spans` divides by the sum of the windows, which is
    nowhere 0.
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
