"""How tensors and weights of the fused path lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

#: What a product of two matrices takes at least on each side.
_LEAST = 16


@dataclass(frozen=True, slots=True)
class Means:
    """What `folding.shortcut.Average` does."""

    side: int
    frames: int
    group: int
    factor: float


@dataclass(frozen=True, slots=True)
class Copied:
    """What `folding.shortcut.Copies` does."""

    frames: int
    repeats: int
    factor: float


def rows_apart(x: Tensor) -> bool:
    """Whether the rows of a channels-last picture are further apart than their pixels take."""
    return x.shape[2] > 1 and x.stride(2) != x.shape[1] * x.shape[3]


def like(x: Tensor) -> Tensor:
    """Memory for another such picture, its rows together."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def stem_weight(weight: Tensor) -> Tensor:
    """(C, colours, 3, 3) → (taps, C), padded with zeros to powers of two; row `tap * colours +
    colour`.
    """
    channels, colours = weight.shape[:2]
    return _padded(weight.permute(2, 3, 1, 0).reshape(9 * colours, channels))


def head_weight(weight: Tensor) -> Tensor:
    """(colours, C, 3, 3) → (C, taps), padded with zeros to powers of two; column `tap * colours +
    colour`.
    """
    colours, channels = weight.shape[:2]
    return _padded(weight.permute(1, 2, 3, 0).reshape(channels, 9 * colours))


def _padded(matrix: Tensor) -> Tensor:
    rows, columns = (max(_LEAST, 1 << (side - 1).bit_length()) for side in matrix.shape)
    padded = matrix.new_zeros(rows, columns)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded
