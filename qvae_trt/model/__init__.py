"""Weights of the Qwen-Image VAE, from every place that `--model` can name.

A hub id, a local folder (the pipeline's or the VAE's own), a single `.safetensors`, `bundled:tiny`,
`random:full` and the other random ones. Only safetensors are read: nothing here unpickles, and only
a hub id reaches for the network.
"""

from __future__ import annotations

from qvae_trt.model.load import (
    BUNDLED_TINY,
    DEFAULT_MODEL,
    OFFLINE_CHOICES,
    RANDOM_FULL,
    RANDOM_FULL_21,
    RANDOM_FULL_RGBA,
    RANDOM_TINY_21,
    Model,
    find_kind,
    load_model,
    model_of_tensors,
)
from qvae_trt.model.seeded import random_vae

__all__ = [
    "BUNDLED_TINY",
    "DEFAULT_MODEL",
    "OFFLINE_CHOICES",
    "RANDOM_FULL",
    "RANDOM_FULL_21",
    "RANDOM_FULL_RGBA",
    "RANDOM_TINY_21",
    "Model",
    "find_kind",
    "load_model",
    "model_of_tensors",
    "random_vae",
]
