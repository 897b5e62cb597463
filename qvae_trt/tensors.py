"""What is known of an engine's tensors without an engine: names, types, shapes and their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from qvae_trt.profiles import Precision

DTypeName = Literal["float16", "bfloat16", "float32"]
#: -1 stands for one that varies.
Side = Annotated[int, lambda value: value.integer(-1)]
DTYPES: dict[Precision, DTypeName] = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An engine's input or output."""

    name: str
    dtype: DTypeName
    shape: tuple[Side, ...]


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """The input shapes (5-D) of one optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @classmethod
    def fixed(cls, shape: tuple[int, ...]) -> ShapeRange:
        return cls(shape, shape, shape)

    @property
    def is_fixed(self) -> bool:
        return self.min == self.max

    def refusal(self, shape: tuple[int, ...]) -> str | None:
        """Why a shape is outside; None if it is inside."""
        if len(shape) != len(self.min):
            return f"{len(shape)} dimensions, expected {len(self.min)}"
        sides = zip(shape, self.min, self.max, strict=True)
        outside = [
            f"dimension {axis} is {side}, expected {low}..{high}"
            for axis, (side, low, high) in enumerate(sides)
            if not low <= side <= high
        ]
        return "; ".join(outside) or None
