"""Ways to write the folded graph: each is the same function, none is the fastest everywhere.

A lowering never changes what the network computes beyond rounding; it changes which kernels TensorRT finds for it.
:func:`choose_lowering` is the one table of what is used where, with the reason and the measurement behind it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from qvae_trt.errors import UsageError

Upsample = Literal["resize", "conv_transpose", "depth_to_space"]
Norm = Literal["native", "fp32", "conv"]

#: `attention_chunks` value that leaves attention to PyTorch's fused kernel; such a graph is run, not exported.
FUSED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """How the folded graph is written.

    Attributes:
        upsample: nearest 2x + 3x3 convolution as `resize` + convolution, as one `conv_transpose` (4 products
            instead of 9) or as one convolution to four phases and `depth_to_space`.
        norm: RMS norm over channels: `native` is PyTorch's own kernel; `fp32` sums squares in float32; `conv` sums
            them in a 1x1 convolution to one channel, which stays in the NHWC layout, with a power-of-two prescale
            per norm that keeps squares inside fp16.
        attention_chunks: into how many runs of queries attention is cut, so that no N x N score matrix is ever
            held; `FUSED` uses PyTorch's scaled_dot_product_attention.
    """

    upsample: Upsample = "resize"
    norm: Norm = "native"
    attention_chunks: int = FUSED

    def __post_init__(self) -> None:
        if self.upsample not in get_args(Upsample):
            raise UsageError(f"unknown upsample lowering {self.upsample!r}", fix=_known(Upsample))
        if self.norm not in get_args(Norm):
            raise UsageError(f"unknown norm lowering {self.norm!r}", fix=_known(Norm))
        if not 0 <= self.attention_chunks <= 256:
            raise UsageError(
                f"attention_chunks is {self.attention_chunks}, expected 0 (fused) to 256"
            )

    def canonical(self) -> str:
        """The lowering as text, e.g. `upsample=resize,norm=fp32,attention_chunks=8`; :meth:`parse` reads it."""
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))

    @classmethod
    def parse(cls, text: str) -> Lowering:
        """Read what :meth:`canonical` wrote; fields left out keep their defaults.

        Raises:
            UsageError: an unknown field or value.
        """
        values: dict[str, str] = {}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in {field.name for field in fields(cls)} or not value:
                raise UsageError(
                    f"cannot read lowering {text!r}", fix="expected e.g. " + cls().canonical()
                )
            values[name] = value
        chunks = values.get("attention_chunks", str(FUSED))
        if not chunks.isdecimal():
            raise UsageError(f"attention_chunks is {chunks!r}, expected a whole number")
        return cls(
            upsample=values.get("upsample", "resize"),  # type: ignore[arg-type]  # __post_init__ checks both
            norm=values.get("norm", "native"),  # type: ignore[arg-type]
            attention_chunks=int(chunks),
        )


def _known(literal: object) -> str:
    return "known: " + ", ".join(get_args(literal))


#: What PyTorch itself runs best: its own fused kernels.
PYTORCH = Lowering()


def choose_lowering(flavour: str, version: str, precision: str) -> Lowering:
    """The lowering that `build` uses for an engine of this flavour, version and precision.

    Args:
        flavour: `tensorrt`, `tensorrt_rtx` or `onnxruntime`.
        version: of that library, e.g. `8.6.1`.
        precision: `fp16`, `bf16` or `fp32`.
    """
    if flavour == "onnxruntime":
        # Resize + Conv are the best-trodden kernels of every execution provider.
        return Lowering(upsample="resize", norm="fp32", attention_chunks=8)
    if flavour == "tensorrt" and version.startswith("8.") and precision == "fp16":
        # 8.6 leaves NHWC for a channel reduction (0.33 ms each way at 1328x1328) and fp32 islands double the bytes.
        return Lowering(upsample="conv_transpose", norm="conv", attention_chunks=8)
    # From 10 on Myelin fuses norm and SiLU, casts included, into one NHWC kernel.
    # ConvTranspose in bf16 finds no kernel on RTX 1.7.
    upsample: Upsample = "depth_to_space" if precision == "bf16" else "conv_transpose"
    return Lowering(upsample=upsample, norm="fp32", attention_chunks=8)
