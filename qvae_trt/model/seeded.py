"""Seeded weights: the architecture without a download, for speed and for tests."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from qvae_trt.errors import ModelError
from qvae_trt.kinds import QWEN_IMAGE, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import AutoencoderKLQwenImage
    from torch import Tensor


#: Keeps the variance through SiLU of a unit normal: 1 / E[silu(x)^2].
_AFTER_SILU = 2.8
#: Variance that each branch adds to its residual stream: small, so that the stream stays O(1).
_BRANCH = 0.15
#: Variance of the decoder's output before the clamp: pixels fill [-1, 1] and few are cut.
_PIXELS = 0.16
_LOGVAR_BIAS = -6.0


def empty_vae(config: Mapping[str, object], kind: Kind = QWEN_IMAGE) -> AutoencoderKLQwenImage:
    """The architecture on the meta device: no memory, no initialisation.

    Raises:
        ModelError: the installed diffusers does not have it.
    """
    import diffusers

    found = getattr(diffusers, kind.class_name, None)
    if found is None:
        raise ModelError(
            f"diffusers {diffusers.__version__} has no {kind.class_name}, which {kind.name} needs",
            fix="pip install -U diffusers",
        )
    with torch.device("meta"):
        return cast("AutoencoderKLQwenImage", found(**config))


def random_vae(
    config: Mapping[str, object], *, kind: Kind = QWEN_IMAGE, seed: int = 0
) -> AutoencoderKLQwenImage:
    """The architecture with weights from `seed`: fp32, CPU, eval, the same on every machine.

    Uniform weights from NumPy's PCG64, whose stream does not depend on the processor (torch's
    normal generator does, through its vector units). Variances are chosen so that one frame of unit
    variance keeps activations O(1), latents O(1), and pixels inside [-1, 1].
    """
    vae = empty_vae(config, kind)
    rng = np.random.Generator(np.random.PCG64(seed))
    tensors = {
        name: torch.from_numpy(_draw(name, tuple(value.shape), rng))
        for name, value in sorted(vae.state_dict().items())
    }
    _quiet_logvar(tensors)
    vae.load_state_dict(tensors, strict=True, assign=True)
    return vae.eval().requires_grad_(False)


def _draw(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    values = rng.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
    if name.endswith("gamma"):
        return np.float32(1) + values * np.float32(0.2)
    if name.endswith("bias"):
        return values * np.float32(0.05)
    # One frame meets a single temporal slice of a kernel.
    fan_in = shape[1] * math.prod(shape[-2:])
    bound = np.float32(math.sqrt(3 * _gain(name) / fan_in))
    return values * bound


def _gain(name: str) -> float:
    """Variance out of the layer over mean square into it."""
    if ".conv1." in name:
        return _AFTER_SILU
    if ".conv2." in name:
        return _AFTER_SILU * _BRANCH
    if ".proj." in name:
        return _BRANCH
    if name == "decoder.conv_out.weight":
        return _AFTER_SILU * _PIXELS
    if name == "encoder.conv_out.weight":
        return _AFTER_SILU
    if "upsampler" in name:
        # Nearest 2x makes the nine taps see four values: sums of equal inputs add as amplitudes.
        return 0.5
    return 1.0


def _quiet_logvar(tensors: dict[str, Tensor]) -> None:
    """Log-variances near _LOGVAR_BIAS, as a trained encoder's: samples stay close to the mode."""
    weight, bias = tensors["quant_conv.weight"], tensors["quant_conv.bias"]
    half = bias.numel() // 2
    weight[half:] *= 0.25
    bias[half:] += _LOGVAR_BIAS
