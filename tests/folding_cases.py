"""VAEs in which no tensor is trivial, inputs for them, and what diffusers makes of these."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21
from torch import Tensor


def make_vae(
    *, base_dim: int = 8, seed: int = 0, mild: bool = False, **changes: object
) -> AutoencoderKLQwenImage:
    """A VAE in which no tensor is trivial: gammas of both signs, biases not zero.

    With `mild`, every gamma is 0.5 to 1.5 or its negative.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKLQwenImage(base_dim=base_dim, **changes)
    return _made_uneven(vae, mild=mild)


def _made_uneven(vae: Any, *, mild: bool) -> Any:
    vae.eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("gamma"):
                values = torch.randn_like(parameter)
                parameter.copy_(values.sign() * (0.5 + values.abs() % 1) if mild else values)
            if name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    return vae.requires_grad_(False)


def make_vae_21(**changes: object) -> AutoencoderKLQwenImage21:
    """The same of Qwen-Image-2.1, narrow: where a group of its means holds zeros, where all of it
    does, where it does not.
    """
    torch.manual_seed(2)
    config: dict[str, Any] = {
        "base_dim": 8,
        "decoder_base_dim": 8,
        "num_res_blocks": 1,
        "z_dim": 16,
    }
    statistics = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    return _made_uneven(AutoencoderKLQwenImage21(**config | statistics | changes), mild=True)


def reference(
    vae: AutoencoderKLQwenImage, pixels: Tensor, latents: Tensor
) -> tuple[Tensor, Tensor]:
    moments = vae.encode(pixels, return_dict=False)[0].parameters
    return moments, vae.decode(latents, return_dict=False)[0]


def inputs(
    channels: int, batch: int, height: int, width: int, *, scale: int = 8
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(batch, channels, 1, height, width, generator=generator) * 2 - 1
    latents = torch.randn(batch, 16, 1, height // scale, width // scale, generator=generator)
    return pixels, latents
