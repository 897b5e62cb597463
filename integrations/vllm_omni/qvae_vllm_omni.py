"""A plugin of vLLM-Omni: with `QVAE_VLLM_OMNI=1`, qvae runs the VAE of Qwen-Image pipelines.

    pip install ./integrations/vllm_omni
    QVAE_VLLM_OMNI=1 QVAE_ENGINE_DIR=engines vllm serve Qwen/Qwen-Image --omni

Without `QVAE_ENGINE_DIR` the fused path serves alone. `QVAE_BACKEND` is as `--backend`.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any

import qvae_trt
from qvae_trt.model import model_of_tensors

log = logging.getLogger(__name__)

SWITCH = "QVAE_VLLM_OMNI"
CLASS_NAME = "AutoencoderKLQwenImage"  # of diffusers, of vLLM-Omni, and a base of its parallel one


def register() -> None:
    """What vLLM-Omni calls in each of its processes, once or several times."""
    if os.environ.get(SWITCH, "0") in ("", "0"):
        return
    from vllm_omni.diffusion.model_loader.diffusers_loader import DiffusersPipelineLoader as Loader

    load = Loader.load_model
    if hasattr(load, "before_qvae"):
        return

    @functools.wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        pipeline = load(self, *args, **kwargs)
        replace_vae(pipeline)
        return pipeline

    load_model.before_qvae = load  # type: ignore[attr-defined]
    Loader.load_model = load_model


def replace_vae(pipeline: Any) -> None:
    """Put qvae's in place of the pipeline's VAE, with the same weights.

    A VAE of another family, or one that several ranks run together, stays.

    Raises:
        QvaeError: the weights or the engines are not what they have to be.
    """
    vae = getattr(pipeline, "vae", None)
    if not any(base.__name__ == CLASS_NAME for base in type(vae).__mro__):
        return
    if getattr(vae, "is_distributed_enabled", lambda: False)():
        log.warning("qvae: several ranks run the VAE together, so it stays vLLM-Omni's")
        return
    made = qvae_trt.load_vae(
        os.environ.get("QVAE_ENGINE_DIR") or None,
        model=model_of_tensors(vae.state_dict(), where="the pipeline's VAE"),
        backend=os.environ.get("QVAE_BACKEND", "auto"),
        device=vae.device,
        dtype=vae.dtype,
    )
    made.register_to_config(
        **{name: vae.config[name] for name in ("latents_mean", "latents_std") if name in vae.config}
    )
    made.use_slicing = getattr(vae, "use_slicing", False)
    made.use_tiling = getattr(vae, "use_tiling", False)
    pipeline.vae = made
    log.info("qvae: the VAE is %r", made)
