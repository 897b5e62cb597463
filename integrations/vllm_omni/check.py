"""Run the plugin by vLLM-Omni's own plugin loader, on the CPU, and compare.

    pip install ./integrations/vllm_omni
    python integrations/vllm_omni/check.py benchmarks/integrations/vllm_omni.json

Runs where vllm-omni is installed beside qvae-trt. The weights are the bundled small ones, in a
pipeline's place stands an object with a VAE; ONNX Runtime runs the engines. Writes what
came out as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import torch

SIZE = "96x64"


def main() -> int:
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        engines = Path(work) / "engines"
        build = [
            sys.executable,
            "-m",
            "qvae_trt",
            "build",
            "--mode",
            "static",
            "--resolution",
            SIZE,
        ]
        build += ["--model", "bundled:tiny", "--backend", "onnxruntime", "--precision", "fp32"]
        subprocess.run([*build, "--engine-dir", engines], check=True, stdout=subprocess.DEVNULL)
        os.environ |= {
            "QVAE_VLLM_OMNI": "1",
            "QVAE_ENGINE_DIR": str(engines),
            "QVAE_BACKEND": "onnxruntime",
        }
        import vllm_omni
        from vllm_omni.diffusion.model_loader import diffusers_loader
        from vllm_omni.diffusion.models.qwen_image.autoencoder_kl_qwenimage import (
            AutoencoderKLQwenImage,
        )
        from vllm_omni.plugins import load_omni_general_plugins

        from qvae_trt.model import load_model

        model = load_model("bundled:tiny").vae
        stock = AutoencoderKLQwenImage.from_config(model.config).eval()
        stock.load_state_dict(model.state_dict())
        pipeline = SimpleNamespace(vae=stock)
        loader = diffusers_loader.DiffusersPipelineLoader
        loader.load_model = lambda _: pipeline
        load_omni_general_plugins()
        vae = loader.load_model(None).vae
        z = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0))
        expected = stock.decode(z, return_dict=False)[0]
        decoded = (vae.decode(z, return_dict=False)[0] - expected).abs().max()
        moments = stock.encode(expected).latent_dist.parameters
        encoded = (vae.encode(expected).latent_dist.parameters - moments).abs().max()
        found = {
            "vllm_omni": vllm_omni.__version__,
            "torch": torch.__version__,
            "loaded": type(vae).__name__,
            "engines": vae.memory()["engines"],
            "worst": float(f"{max(decoded, encoded):.1e}"),
        }
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["engines"] == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
