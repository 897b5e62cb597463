"""What engines are compared with: PyTorch in fp32, and PyTorch in bf16 as the yardstick.

The reference is diffusers' own VAE, called as it ships. Its Conv3d layers do
three times the arithmetic that a single frame needs, so on a CPU, past `DIFFUSERS_CPU_PIXELS`, the
folded graph replaces it, and only after it gave the same results as diffusers' in this very run
(`Proof`). On a GPU it never does. For the yardstick it also does at small sizes where the CPU has
no bf16 convolutions.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch

from qvae_trt.folding import fold
from qvae_trt.model import Model, half_of
from qvae_trt.profiles import PARTS, Part, Resolution
from qvae_trt.verify.inputs import LATENTS, PICTURES, Array, Output, picture, sampled_latents

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage

Source = Literal["diffusers", "folded"]
Dtype = Literal["fp32", "bf16"]
Outputs = dict[Output, Array]
Call = Callable[[torch.Tensor], torch.Tensor]

#: On a CPU the folded graph stands in for diffusers' above this size (the smallest of the nine
#: profiles' opt).
DIFFUSERS_CPU_PIXELS = 512 * 512
#: Where the two are compared before that. Not square, and small: a second on one core for the
#: tiny model.
PROOF_SIZE = Resolution(96, 128)
#: Largest difference between the folded and diffusers' fp32 results, as in the tests of the fold.
PROOF_MAX_ABS = 1e-5
#: The folded bf16 error over diffusers' bf16 error, at most. More would loosen the yardstick by
#: folding.
PROOF_BF16_RATIO = 1.05
#: Results kept at once: both dtypes of both inputs of one part and size.
_KEPT = 4


@dataclass(frozen=True, slots=True)
class Proof:
    """The folded graph beside diffusers', on one input of `PROOF_SIZE`.

    Attributes:
        fp32_max_abs: the largest difference of the fp32 results, over both parts, relative to the
            largest value where that is past 1.
        bf16_ratio: ||folded bf16 - fp32|| / ||diffusers bf16 - fp32||, the larger of the two parts.
    """

    fp32_max_abs: float
    bf16_ratio: float

    @property
    def fp32_equal(self) -> bool:
        return self.fp32_max_abs <= PROOF_MAX_ABS

    @property
    def bf16_equal(self) -> bool:
        return self.bf16_ratio <= PROOF_BF16_RATIO

    def to_dict(self) -> dict[str, object]:
        equal = {"fp32_equal": self.fp32_equal, "bf16_equal": self.bf16_equal}
        return {"resolution": str(PROOF_SIZE), **asdict(self), **equal}


class Reference:
    """PyTorch results for one model, on one device, with what they need made at first use.

    Args:
        folded: by the folded graph alone, whose activations fit where those of Conv3d do not.
    """

    def __init__(self, model: Model, *, device: torch.device, folded: bool = False) -> None:
        self.device = device
        self._always_folded = folded
        self._model = model
        self._modules: dict[tuple[Source, Dtype], torch.nn.Module] = {}
        self._latents: dict[Resolution, Array] = {}
        self._kept: dict[tuple[Part, str, Resolution, Dtype], tuple[Outputs, Source]] = {}
        #: The comparison of the folded graph with diffusers', None where it was not needed.
        self.proof: Proof | None = None

    def source(self, resolution: Resolution, dtype: Dtype) -> Source:
        """Which graph gives the results of this size."""
        if self._always_folded:
            return "folded"
        small = resolution.pixels <= DIFFUSERS_CPU_PIXELS and (dtype == "fp32" or fast_bf16())
        if self.device.type != "cpu" or small:
            return "diffusers"
        if self.proof is None:
            self.proof = self._prove()
        equal = self.proof.fp32_equal and (dtype == "fp32" or self.proof.bf16_equal)
        return "folded" if equal else "diffusers"

    def run(self, part: Part, x: Array, dtype: Dtype) -> Outputs:
        """The part's outputs in fp32: `images`, or `mean` and `logvar`.

        Where the GPU has too little free memory the CPU does it.

        Args:
            x: (1, C, 1, H, W) in [-1, 1], or (1, z, 1, h, w).
        """
        scale = 1 if part == "encoder" else self._model.kind.scale
        size = Resolution(x.shape[-2] * scale, x.shape[-1] * scale)
        try:
            return self._run(self.source(size, dtype), part, x, dtype)
        except torch.OutOfMemoryError:
            if self.device.type == "cpu":
                raise
        self._modules.clear()
        torch.cuda.empty_cache()
        self.device = torch.device("cpu")
        return self.run(part, x, dtype)

    def input(self, part: Part, name: str, resolution: Resolution) -> Array:
        """The named input of this size; `encoded` is the reference's own mean of the photograph."""
        if part == "encoder":
            return picture(name, resolution, channels=self._model.input_channels)
        if name == "sampled":
            config = self._model.vae.config
            latents = self._model.kind.latents_of(resolution)
            statistics = {"mean": config.latents_mean, "std": config.latents_std}
            return sampled_latents(resolution, latents, **statistics)
        if resolution not in self._latents:
            self.outputs("encoder", PICTURES[0], resolution, "fp32")
        return self._latents[resolution]

    def outputs(
        self, part: Part, name: str, resolution: Resolution, dtype: Dtype
    ) -> tuple[Outputs, Source]:
        """The part's outputs on the named input, and which graph gave them. The last few are kept,
        and the encoder's means of photographs, which are the decoder's `encoded` input.
        """
        key = (part, name, resolution, dtype)
        if key not in self._kept:
            source = self.source(resolution, dtype)
            outputs = self.run(part, self.input(part, name, resolution), dtype)
            if key == ("encoder", PICTURES[0], resolution, "fp32"):
                self._latents[resolution] = outputs["mean"]
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = (outputs, source)
        return self._kept[key]

    def response(self, part: Part) -> dict[Output, float]:
        """How much of each output changes with the input: ||f(a) - f(b)|| / ||f(a)||, for the two
        inputs of a part at `PROOF_SIZE`.
        """
        names = PICTURES if part == "encoder" else LATENTS
        first, second = (self.outputs(part, name, PROOF_SIZE, "fp32")[0] for name in names)
        sizes = {name: float(np.linalg.norm(value)) for name, value in first.items()}
        return {
            name: float(np.linalg.norm(second[name] - first[name])) / size if size else 0.0
            for name, size in sizes.items()
        }

    def _prove(self) -> Proof:
        photograph = picture("photograph", PROOF_SIZE, channels=self._model.input_channels)
        latents = self._run("diffusers", "encoder", photograph, "fp32")["mean"]
        largest, ratio = 0.0, 0.0
        for part in PARTS:
            x = photograph if part == "encoder" else latents
            fp32 = self._joined("diffusers", part, x, "fp32")
            folded = self._joined("folded", part, x, "fp32")
            scale = max(1.0, float(np.abs(fp32).max()))
            largest = max(largest, float(np.abs(folded - fp32).max()) / scale)
            own = np.linalg.norm(self._joined("diffusers", part, x, "bf16") - fp32)
            other = np.linalg.norm(self._joined("folded", part, x, "bf16") - fp32)
            ratio = max(ratio, float(other / own) if own else float("inf"))
        return Proof(fp32_max_abs=largest, bf16_ratio=ratio)

    def _joined(self, source: Source, part: Part, x: Array, dtype: Dtype) -> Array:
        outputs = self._run(source, part, x, dtype)
        return np.concatenate([value.ravel() for value in outputs.values()])

    def _run(self, source: Source, part: Part, x: Array, dtype: Dtype) -> Outputs:
        module = self._module(source, dtype)
        torch_dtype = torch.float32 if dtype == "fp32" else torch.bfloat16
        tensor = torch.from_numpy(x).to(self.device, torch_dtype)
        with torch.inference_mode(), exact_fp32():
            y = _call(module, source, part)(tensor)
        return split_outputs(part, y.float().cpu().numpy())

    def _module(self, source: Source, dtype: Dtype) -> torch.nn.Module:
        key = (source, dtype)
        if key not in self._modules:
            vae = self._model.vae
            made: torch.nn.Module = vae if source == "diffusers" else fold(vae)
            if dtype == "bf16":
                # Not ModelMixin.to, which warns of layers that other models keep in fp32.
                made = torch.nn.Module.to(copy.deepcopy(made), torch.bfloat16)
            elif made is vae and self.device.type != "cpu":
                made = copy.deepcopy(made)
            self._modules[key] = made.to(self.device)
        return self._modules[key]


def _call(module: torch.nn.Module, source: Source, part: Part) -> Call:
    if source == "folded":
        return cast("Call", module.encode if part == "encoder" else module.decode)
    return half_of(cast("AutoencoderKLQwenImage", module), part)


def split_outputs(part: Part, y: Array) -> Outputs:
    """An engine's or PyTorch's only tensor as what is compared: `images`, or `mean` and `logvar`.

    The log-variance is clamped to [-30, 20], as every user of the moments does before anything
    else.
    """
    y = np.ascontiguousarray(y)  # PyTorch's may be channels_last, which Polygraphy does not take
    if part == "decoder":
        return {"images": y}
    mean, logvar = np.split(y, 2, axis=1)
    return {"mean": np.ascontiguousarray(mean), "logvar": np.clip(logvar, -30.0, 20.0, order="C")}


def fast_bf16() -> bool:
    """Whether this CPU has bf16 convolutions of its own (AVX-512).

    Without them PyTorch falls back to plain loops: a bf16 Conv3d of 384x256 pixels takes a minute.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return supported is not None and bool(supported())


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Compute in fp32 without TF32, which cuDNN uses otherwise and which is as coarse as fp16."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    cudnn = torch.backends.cudnn
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
