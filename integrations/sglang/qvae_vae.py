"""The class to which `auto_map` in the config.json beside this file sends SGLang's VAE loader.

`make_folder.py` puts both into a folder with the VAE's weights.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import qvae_trt


class QvaeVae:
    """By name only: what it loads stands where diffusers' `AutoencoderKLQwenImage` stands."""

    @staticmethod
    def from_pretrained(folder: str, **_: Any) -> qvae_trt.TrtVae:
        """The VAE of this folder, on the CPU, from where SGLang moves it.

        Its engines are those of `QVAE_ENGINE_DIR`, else those that config.json names.
        """
        config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
        engines = os.environ.get("QVAE_ENGINE_DIR") or config.get("qvae_engine_dir")
        vae = qvae_trt.load_vae(
            engines, model=folder, backend=os.environ.get("QVAE_BACKEND", "auto"), device="cpu"
        )
        vae.use_parallel_decode = False  # SGLang asks where there are several GPUs
        return vae
