"""The VAE on cuDNN convolutions and Triton kernels: any size, nothing to build.

It needs a CUDA GPU and Triton. `load` says what is missing; importing this package asks for
neither.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from qvae_trt.errors import BackendError
from qvae_trt.folding import FoldedVae, fold
from qvae_trt.fused.launching import compiling
from qvae_trt.fused.network import LOWERING, FusedVae

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage


__all__ = ["FusedVae", "load", "refusal"]

#: Tensor cores of bfloat16.
_LEAST_CAPABILITY = (8, 0)
#: The largest relative L2 error of the check, by dtype: ten times what is usual at that size.
_BOUNDS = {torch.float16: 2e-2, torch.bfloat16: 2e-1}
#: Of the check, in latents: more than one block of pixels and keys, and no multiple of one.
_CHECKED_SIZE = (9, 11)
_CHECKED_TOKENS = (99, 600)


def refusal(device: torch.device) -> str | None:
    """Why the fused path cannot run on a device; None if it can."""
    if device.type != "cuda":
        return f"the fused path needs a CUDA GPU, the tensors are on {device.type}"
    try:
        importlib.import_module("triton.tools.tensor_descriptor")
    except ImportError as error:
        return f"the fused path needs Triton 3.4 or later: {error}"
    found = torch.cuda.get_device_capability(device)
    if found < _LEAST_CAPABILITY:
        return f"the fused path needs compute capability 8.0 or later, found {found[0]}.{found[1]}"
    return None


def load(vae: AutoencoderKLQwenImage, device: torch.device) -> FusedVae:
    """The fused network of `vae` on a device, after a small picture has shown that it is right.

    In float16, whatever the pipeline's dtype: as fast as bfloat16, and ten times as exact. Weights
    whose check fails in float16 get bfloat16.

    Args:
        vae: diffusers' AutoencoderKLQwenImage or AutoencoderKLQwenImage21,
            of any width; stays where it is.
        device: a CUDA device.

    Raises:
        BackendError: the device or this Python cannot run it, or the check failed in both dtypes.
    """
    reason = refusal(device)
    if reason is not None:
        raise BackendError(reason)
    from qvae_trt.fused import kernels

    folded = fold(vae, lowering=LOWERING)
    expected = _samples(folded)
    errors = []
    for dtype, bound in _BOUNDS.items():
        fused = FusedVae(folded, vae, kernels).to(device, dtype)
        with compiling(device):
            _ask_for_all_kernels(fused, expected, device)
        errors.append(max(_errors(fused, expected, device)))
        if errors[-1] <= bound:
            if dtype != torch.float16:
                warnings.warn(
                    "the fused path runs in bfloat16: in float16 it differs from the folded network"
                    f" by {errors[0]:.1e} (relative L2) with these weights",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return fused
    found = " and ".join(f"{error:.1e}" for error in errors)
    raise BackendError(
        f"the fused path differs from the folded network by {found} (relative L2, float16 and"
        f" bfloat16) on {device}",
        fix="please report this, with the versions that `qvae doctor` prints",
    )


def _samples(folded: FoldedVae) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs of both halves and the folded network's outputs, in float32 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    height, width = _CHECKED_SIZE
    colours, channels = (
        cast("int", half.layers[0].in_channels) for half in (folded.encoder, folded.decoder)
    )
    sides = folded.scale * height, folded.scale * width
    picture = torch.rand((1, colours, 1, *sides), generator=generator) * 2 - 1
    latents = torch.randn((1, channels, 1, height, width), generator=generator)
    with torch.no_grad():
        return {
            "encode": (picture, folded.float().encode(picture)),
            "decode": (latents, folded.decode(latents)),
        }


def _ask_for_all_kernels(
    fused: FusedVae, samples: dict[str, tuple[Tensor, Tensor]], device: torch.device
) -> None:
    """Launch each kernel that a picture of any floating dtype needs."""
    with torch.no_grad():
        for half, (x, _) in samples.items():
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                getattr(fused, half)(x.to(device, dtype))
        for qkv in _projected(fused):
            fused.kernels.attend(qkv.to(device))


def _projected(fused: FusedVae) -> Iterator[Tensor]:
    """Queries, keys and values of few tokens, and of so many that the keys are cut into parts."""
    generator = torch.Generator().manual_seed(1)
    for tokens in _CHECKED_TOKENS:
        shape = tokens, 3 * fused.decoder.attention_channels
        yield torch.randn(shape, generator=generator).to(fused.dtype)


def _errors(
    fused: FusedVae, samples: dict[str, tuple[Tensor, Tensor]], device: torch.device
) -> Iterator[float]:
    """Of both halves, and of attention alone, which adds little to a picture."""
    for half, (x, expected) in samples.items():
        with torch.no_grad():
            yield _error(getattr(fused, half)(x.to(device)).float().cpu(), expected)
    for qkv in _projected(fused):
        found = fused.kernels.attend(qkv.to(device)).float().cpu()
        query, key, value = (x[None, None] for x in qkv.float().chunk(3, dim=1))
        yield _error(found, F.scaled_dot_product_attention(query, key, value)[0, 0])


def _error(found: Tensor, expected: Tensor) -> float:
    """Relative L2; infinite where something is not a number."""
    error = float((found - expected).norm() / expected.norm())
    return math.inf if math.isnan(error) else error
