"""Load a folder of `make_folder.py` with SGLang's own VAE loader, on the CPU, and compare.

    python integrations/sglang/check.py > benchmarks/integrations/sglang.json

Runs where sglang is installed beside qvae-trt. The weights are the bundled small ones; ONNX Runtime
runs the engines. Prints what came out as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
SIZE = "96x64"


def server_args(config: Any) -> Any:
    """What the loader reads of SGLang's own settings for one CPU."""
    return SimpleNamespace(
        pipeline_config=config,
        model_paths={},
        component_precisions={"vae": "fp32"},
        component_weights_paths={},
        component_quantizations={},
        revision=None,
        trust_remote_code=True,
        num_gpus=1,
        disable_autocast=False,
        should_start_component_on_cpu=lambda _: True,
        should_direct_gpu_weight_load_component=lambda _: False,
    )


def main() -> int:
    import sglang
    from diffusers import AutoencoderKLQwenImage
    from sglang.multimodal_gen.configs.pipeline_configs.qwen_image import QwenImagePipelineConfig
    from sglang.multimodal_gen.runtime.loader.component_loaders.vae_loader import VAELoader

    os.environ["QVAE_BACKEND"] = "onnxruntime"
    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        engines, folder = Path(work) / "engines", Path(work) / "vae"
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
        make = [sys.executable, HERE / "make_folder.py", "--model", "bundled:tiny", "--out", folder]
        for command in ([*build, "--engine-dir", engines], [*make, "--engine-dir", engines]):
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        loader = VAELoader()
        vae = loader.load_customized(str(folder), server_args(QwenImagePipelineConfig()), "vae")
        stock = AutoencoderKLQwenImage.from_pretrained(folder)
        z = torch.randn(1, 16, 1, 8, 12, generator=torch.Generator().manual_seed(0))
        expected = stock.decode(z).sample
        decoded = (vae.decode(z).sample - expected).abs().max()
        moments = stock.encode(expected).latent_dist.parameters
        encoded = (vae.encode(expected).latent_dist.parameters - moments).abs().max()
        found = {
            "sglang": sglang.__version__,
            "torch": torch.__version__,
            "loaded": type(vae).__name__,
            "engines": vae.memory()["engines"],
            "worst": float(f"{max(decoded, encoded):.1e}"),
        }
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0 if found["engines"] == 2 else 1


if __name__ == "__main__":
    sys.exit(main())
