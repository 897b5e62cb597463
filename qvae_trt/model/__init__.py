"""Weights of the Qwen-Image VAE, from every place that `--model` can name.

A hub id, a local folder (the pipeline's or the VAE's own), a single `.safetensors`, `bundled:tiny`,
`random:full` and the other random ones. Only safetensors are read: nothing here unpickles, and only
a hub id reaches for the network.
"""

from __future__ import annotations

from qvae_trt.model.load import BUNDLED_TINY as BUNDLED_TINY
from qvae_trt.model.load import DEFAULT_MODEL as DEFAULT_MODEL
from qvae_trt.model.load import RANDOM_FULL as RANDOM_FULL
from qvae_trt.model.load import RANDOM_FULL_21 as RANDOM_FULL_21
from qvae_trt.model.load import RANDOM_FULL_RGBA as RANDOM_FULL_RGBA
from qvae_trt.model.load import RANDOM_TINY_21 as RANDOM_TINY_21
from qvae_trt.model.load import Model as Model
from qvae_trt.model.load import existing_path as existing_path
from qvae_trt.model.load import find_kind as find_kind
from qvae_trt.model.load import load_model as load_model
from qvae_trt.model.load import model_of_tensors as model_of_tensors
from qvae_trt.model.seeded import random_vae as random_vae
