"""Decode latents on Triton Inference Server, with a model of `qvae triton`.

    pip install 'tritonclient[http]'
    python examples/triton_client.py latents.safetensors --out picture.png \\
        --model qwen_image_vae_decoder_profiles --url localhost:8000

Latents of `qvae encode` are as the VAE takes them. Those of a denoiser are normalised, a channel at
a time: `--normalised CONFIG` undoes that, CONFIG being the config.json of the VAE.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qvae_trt.images import crop, read_latents, write_picture


def unnormalise(latents: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """A denoiser's latents (B, 16, 1, h, w), as the VAE takes them."""
    mean, std = (
        torch.tensor(config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    return latents * std + mean


def decode(client: Any, model: str, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the VAE takes them → pixels (B, C, 1, H, W) in [-1, 1]."""
    from tritonclient.http import InferInput

    config = client.get_model_metadata(model)
    given = config["inputs"][0]
    kinds = {"FP16": np.float16, "FP32": np.float32}
    values = latents.float().numpy().astype(kinds[given["datatype"]])
    made = []
    for one in values:  # an engine takes one picture
        tensor = InferInput(given["name"], (1, *one.shape), given["datatype"])
        tensor.set_data_from_numpy(one[None])
        answer = client.infer(model, [tensor])
        made.append(torch.from_numpy(answer.as_numpy(config["outputs"][0]["name"]).copy()))
    return torch.cat(made).float()


def main() -> int:
    parser = argparse.ArgumentParser(description="Decode latents on Triton Inference Server.")
    parser.add_argument("latents", type=Path, help="a file of qvae encode, or of a denoiser")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument(
        "--model",
        default="qwen_image_vae_decoder_profiles",
        help="its name in the repository (default: %(default)s)",
    )
    parser.add_argument("--url", default="localhost:8000", help="default: %(default)s")
    parser.add_argument(
        "--normalised", type=Path, metavar="CONFIG", help="a denoiser's; the VAE's config.json"
    )
    given = parser.parse_args()
    from tritonclient.http import InferenceServerClient

    latents = read_latents(given.latents)
    values = latents.values
    if given.normalised is not None:
        values = unnormalise(values, json.loads(given.normalised.read_text("utf-8")))
    pixels = decode(InferenceServerClient(given.url), given.model, values)
    write_picture(given.out, crop(pixels, (latents.height, latents.width)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
