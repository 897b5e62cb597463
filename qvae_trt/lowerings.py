"""Ways to write the folded graph: each is the same function, none is the fastest everywhere.

A lowering never changes what the network computes beyond rounding; it changes which kernels
TensorRT finds for it. :func:`choose_lowering` is the one table of what is used where, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from qvae_trt.errors import UsageError

if TYPE_CHECKING:
    from qvae_trt.profiles import Profile

Upsample = Literal["resize", "conv_transpose", "depth_to_space"]
Norm = Literal["native", "fp32", "conv_spread", "conv_wide"]
Residual = Literal["add", "subtract"]
Attention = Literal["fused", "softmax", "exp"]
Halves = Literal["none", "last", "last_two"]
#: The fields of a lowering, in the order of its text, and the values that each may have.
_KNOWN: dict[str, Any] = {
    "upsample": get_args(Upsample),
    "norm": get_args(Norm),
    "residual": get_args(Residual),
    "attention": get_args(Attention),
    "attention_chunks": range(1, 257),
    "halves": get_args(Halves),
}
#: Pixels of the largest graph that is left whole.
_MOST_WHOLE = 1792 * 1792
#: Pixels: the least height of a graph in halves. Of the VAEs that `model` accepts, the one with the
#: most convolutions needs 216 for `last`.
_LEAST_HALVED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowering:
    """How the folded graph is written.

    Attributes:
        upsample: nearest 2x + 3x3 convolution as `resize` + convolution, as one `conv_transpose`
            (4 products instead of 9) or as one convolution to four phases and `depth_to_space`.
        norm: RMS norm over channels: `native` is PyTorch's own kernel; `fp32` sums squares in
            float32; `conv_spread` sums them with a 1x1 convolution, which keeps the NHWC layout.
            There the convolution before a block's second norm applies the gain of that norm, and a
            second 1x1 convolution spreads the other gains over the channels. Powers of two in the
            weights keep the squares inside fp16: `folding.scaling`. `conv_wide` sums into every
            channel, with fewer kernels that read more: `RmsNorm.widen`.
        residual: of a block without a convolution in its shortcut, `add` or, with the signs of the
            convolution before it changed, `subtract`: a convolution fused with a sum may be slower
            than the two.
        attention: `fused` is PyTorch's scaled_dot_product_attention; `softmax` cuts the queries
            into `attention_chunks` runs, one after the other, so that no N x N score matrix is ever
            held; `exp` does the same with the softmax's division behind the second product.
        attention_chunks: into how many runs the queries are cut; unused by `fused`.
        halves: what is computed in two halves of the rows, so that less is held at once, and a few
            rows twice: with `last` the layers in full size, with `last_two` also the decoder's
            upsampling before. Pictures must then be at least 256 high.
    """

    upsample: Upsample = "resize"
    norm: Norm = "native"
    residual: Residual = "add"
    attention: Attention = "fused"
    attention_chunks: int = 1
    halves: Halves = "none"

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            value = getattr(self, name)
            if value not in known:
                counted = isinstance(known, range)
                expected = f"{known[0]} to {known[-1]}" if counted else " or ".join(known)
                raise UsageError(f"{name} is {value!r}, expected {expected}")

    def for_sizes(self, profiles: Sequence[Profile], flavour: str, version: str) -> Lowering:
        """The same for an engine of these sizes, which may take too much memory otherwise.

        Whole, a decoder of Qwen-Image-2.1 at 2048x2048 has a tensor of 2.4 GB, with which TensorRT
        8.6 fails; at 1792x1792 it builds (benchmarks/h100/README.md). Of ranges, 8.6 plans 2.7 GB
        for Qwen-Image's decoder in halves with 7 runs of attention, and 2.5 with 8; small pictures
        are faster with fewer kernels (benchmarks/h200/README.md).
        """
        fitted = self
        if self.halves == "none" and any(p.max.pixels > _MOST_WHOLE for p in profiles):
            fitted = replace(self, halves="last")
        if default_level(profiles, flavour, version) is not None:
            norm: Norm = "conv_wide" if self.norm == "conv_spread" else self.norm
            runs = max(self.attention_chunks, 8)
            fitted = replace(self, halves="last_two", norm=norm, attention_chunks=runs)
        low = any(p.min.height < _LEAST_HALVED for p in profiles)
        return replace(fitted, halves="none") if low else fitted

    @property
    def fewest_latents(self) -> int:
        """Height times width of the smallest latents that a graph of any size takes: it fills the
        runs of queries up with some of the queries, `exp` also the keys to a multiple of 8 with
        some of the keys, and at most with each of them once.
        """
        if self.attention == "fused":
            return 1
        return max((self.attention_chunks + 1) // 2, 4 if self.attention == "exp" else 1)

    def canonical(self) -> str:
        """The lowering as text, e.g. `upsample=resize,norm=fp32,attention=softmax,…`."""
        return ",".join(f"{name}={getattr(self, name)}" for name in _KNOWN)

    @classmethod
    def parse(cls, text: str) -> Lowering:
        """Read what :meth:`canonical` wrote; fields left out keep their defaults.

        Raises:
            UsageError: an unknown field or value.
        """
        values: dict[str, Any] = {}
        for item in filter(None, text.split(",")):
            name, _, value = item.partition("=")
            if name not in _KNOWN or name in values or not value:
                what = f"cannot read the lowering {text!r} at {item!r}"
                raise UsageError(what, fix=f"expected e.g. {cls().canonical()}")
            values[name] = {str(known): known for known in _KNOWN[name]}.get(value, value)
        return cls(**values)


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
        return Lowering(upsample="resize", norm="fp32", attention="softmax", attention_chunks=8)
    if flavour == "tensorrt" and version.startswith("8.") and precision == "fp16":
        # Measured on an H200 at 1328x1328 with 8.6 (benchmarks/h200/README.md): a channel reduction
        # leaves NHWC and costs a reformat of 0.33 ms; softmax takes 3.7 of attention's 8.5 ms,
        # `exp` brings the whole to 4.3 ms, and one run after the other its scratch from 3.2 to 0.5
        # GB; a convolution of 384 channels takes 0.52 ms with a sum in it, 0.37 without, the sum
        # 0.07. 7 runs of attention take 4.29 ms, 8 4.33, 5 4.50 and 14 5.12.
        return Lowering(
            upsample="conv_transpose",
            norm="conv_spread",
            residual="subtract",
            attention="exp",
            attention_chunks=7,
        )
    # RTX 1.7 makes one region of the whole network, norms with their casts included; that 10 and 11
    # do so on other GPUs is a guess until `qvae tune` has been run there.
    # ConvTranspose in bf16 finds no kernel on RTX 1.7, nor, by reports, on 11.0.
    upsample: Upsample = "depth_to_space" if precision == "bf16" else "conv_transpose"
    return Lowering(upsample=upsample, norm="fp32", attention="softmax", attention_chunks=8)


def default_level(profiles: Sequence[Profile], flavour: str, version: str) -> int | None:
    """The builder level of an engine unless another one is asked for; None is TensorRT's own.

    2 for ranges with TensorRT 8.6: with the rest of what `build` does for them, both engines of
    Qwen-Image are built in 606 s on an H200, and took 1,701 on an H100 (benchmarks/h200/README.md).
    """
    ranges = any(profile.min != profile.max for profile in profiles)
    return 2 if ranges and flavour == "tensorrt" and version.startswith("8.") else None
