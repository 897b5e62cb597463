"""What there is to choose from: a lowering and a builder level, and the few worth measuring."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from qvae_trt.errors import UsageError
from qvae_trt.lowerings import Lowering, choose_lowering
from qvae_trt.profiles import Part, Precision

DEFAULT = "default"
_MAX_LEVEL = 5
_FIELDS = tuple(field.name for field in fields(Lowering))

Level = Annotated[int, lambda value: value.integer(0, _MAX_LEVEL)]
Axis = tuple[str, tuple[str, ...]]
"""A field of a variant, and the values of it that are tried."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build an engine. `level` None is what `build` takes by default. For ranges and
    large sizes `build` fits the lowering: `Lowering.for_sizes`.
    """

    lowering: Lowering
    level: Level | None = None

    def __str__(self) -> str:
        """All of it, as :meth:`changed` reads it."""
        level = "" if self.level is None else f",level={self.level}"
        return f"{self.lowering.canonical()}{level}"

    def changed(self, text: str) -> Variant:
        """This variant with what `text` says, e.g. `attention_chunks=4,level=2`; `default` changes
        nothing.

        Raises:
            UsageError: an unknown field or value, or a field twice.

        >>> default = default_variant("onnxruntime", "1", "fp16")
        >>> default.changed("attention=exp,level=2").against(default)
        'attention=exp,level=2'
        """
        if text.strip() == DEFAULT:
            return self
        items = [item.strip().partition("=") for item in text.split(",")]
        changes = {name: value for name, _, value in items}
        if len(changes) < len(items) or "" in changes:
            raise UsageError(
                f"cannot read the variant {text!r}",
                fix=f"expected {DEFAULT}, or fields as attention_chunks=4,level=2",
            )
        level = changes.pop("level", None)
        values = {name: getattr(self.lowering, name) for name in _FIELDS} | changes
        lowering = Lowering.parse(",".join(f"{name}={value}" for name, value in values.items()))
        return Variant(lowering, self.level if level is None else _level(level))

    def against(self, other: Variant) -> str:
        """In what it differs from another one, as :meth:`changed` reads it; `default` if in
        nothing.
        """
        names = [n for n in _FIELDS if getattr(self.lowering, n) != getattr(other.lowering, n)]
        words = [f"{name}={getattr(self.lowering, name)}" for name in names]
        if self.level != other.level:
            words.append(f"level={self.level}")
        return ",".join(words) or DEFAULT


def _level(text: str) -> int:
    if not (len(text) == 1 and text in "012345"):
        raise UsageError(f"level is {text!r}, expected 0 to {_MAX_LEVEL}")
    return int(text)


def default_variant(flavour: str, version: str, precision: Precision) -> Variant:
    """What `build` does without a tune file."""
    return Variant(choose_lowering(flavour, version, precision))


def has_levels(flavour: str) -> bool:
    """Whether the builder level makes a difference: TensorRT-RTX accepts one and builds the same
    engine.
    """
    return flavour == "tensorrt"


def curated(
    flavour: str, precision: Precision, part: Part, latents: tuple[int, int]
) -> tuple[Axis, ...]:
    """The axes that matter for a flavour, in the order in which they are tried.

    Each axis is tried from the best variant so far, so that the result is a combination although
    the full product is not built. What matters most comes first: half of the decoder's convolutions
    stand behind an upsampling, and attention decides on memory.
    """
    upsamples: tuple[str, ...] = ("conv_transpose", "depth_to_space", "resize")
    if precision == "bf16":
        upsamples = upsamples[1:]  # TensorRT 11.0 and RTX have no kernel for the first
    tokens = latents[0] * latents[1]
    numbers = (1, 8) if flavour == "onnxruntime" else (4, 7, 8, 16)
    chunks = tuple(str(number) for number in numbers if number <= tokens)
    axes: list[Axis] = []
    if part == "decoder":  # the encoder has none
        axes.append(("upsample", upsamples))
    axes.append(("norm", ("fp32", "conv_spread", "conv_wide")))
    if flavour != "onnxruntime":  # which fuses no sums
        axes.append(("residual", ("add", "subtract")))
    axes += [("attention", ("softmax", "exp")), ("attention_chunks", chunks)]
    if has_levels(flavour):
        # 5 can take tens of minutes for one engine; --variants level=5 tries it.
        axes.append(("level", ("4",)))
    return tuple(axes)
