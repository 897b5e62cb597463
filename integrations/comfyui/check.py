"""Compare the node with the stock VAE inside a real ComfyUI, on the CPU and random weights.

    python integrations/comfyui/check.py COMFYUI > benchmarks/integrations/comfyui.json

COMFYUI is a checkout of ComfyUI, whose requirements are installed beside qvae-trt. The weights are
of the full architecture in ComfyUI's layout; ONNX Runtime runs the engines. Prints what came out as
JSON.
"""

from __future__ import annotations

import asyncio
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PROFILE = '[[profile]]\nmin = "16x16"\nopt = "64x64"\nmax = "128x128"\n'


def random_weights() -> dict[str, torch.Tensor]:
    """Of the full architecture, by the names that ComfyUI's own class has."""
    from comfy.ldm.wan.vae import WanVAE

    torch.manual_seed(0)
    vae = WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    tensors = {}
    for name, value in vae.state_dict().items():
        if name.endswith("gamma"):
            tensors[name] = torch.ones(value.shape)
        else:
            fan_in = max(1, value[0].numel())
            tensors[name] = torch.randn(value.shape) / fan_in**0.5 * (value.ndim > 1)
    return tensors


def build(weights: Path, folder: Path) -> None:
    """A static pair of 96x64, and a pair with one profile."""
    profiles = weights.with_name("profiles.toml")
    profiles.write_text(PROFILE)
    common = [sys.executable, "-m", "qvae_trt", "build", "--model", str(weights), "--backend"]
    common += ["onnxruntime", "--precision", "fp32", "--engine-dir", str(folder)]
    for mode in (["static", "--resolution", "96x64"], ["profiles", "--profiles", str(profiles)]):
        subprocess.run([*common, "--mode", *mode], check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    comfyui = Path(sys.argv[1]).resolve()
    sys.path.insert(0, str(comfyui))
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfyui_version
    import nodes
    from comfy import model_management

    with tempfile.TemporaryDirectory() as work, torch.inference_mode():
        weights = Path(work) / "qwen_image_vae.safetensors"
        tensors = random_weights()
        save_file(tensors, weights)
        engines = Path(work) / "engines"
        build(weights, engines)
        asyncio.run(nodes.load_custom_node(str(Path(__file__).resolve().parent)))
        load = nodes.NODE_CLASS_MAPPINGS["QvaeEngines"]().load
        stock = comfy.sd.VAE(sd=dict(tensors))
        (ours,) = load(stock, str(engines), "onnxruntime")
        cases = []

        def compare(kind: Any, what: str, expected_by: Any = stock, **inputs: Any) -> Any:
            node = kind()
            run = getattr(node, node.FUNCTION)
            found, expected = (
                x["samples"] if isinstance(x, dict) else x
                for (x,) in (run(vae=vae, **inputs) for vae in (ours, expected_by))
            )
            difference = float(f"{(found - expected).abs().max():.1e}")
            cases.append({"node": kind.__name__, "input": what, "largest_difference": difference})
            return expected

        for what, width, height in (("static", 96, 64), ("profile", 128, 96), ("stock", 160, 160)):
            what = f"{width}x{height}, {what}"
            latents = compare(nodes.VAEEncode, what, pixels=torch.rand(1, height, width, 3))
            compare(nodes.VAEDecode, what, samples={"samples": latents})
        video = {"samples": torch.randn(1, 16, 3, 8, 12)}
        compare(nodes.VAEDecode, "3 latent frames, stock", samples=video)
        tiles = {"tile_size": 64, "overlap": 16}
        pixels = torch.rand(1, 160, 192, 3)
        latents = {"samples": compare(nodes.VAEEncodeTiled, "192x160", pixels=pixels, **tiles)}
        # The engine ends with the clamp to [-1, 1] that ComfyUI makes after it has blended tiles.
        clamped, inner = copy.copy(stock), copy.copy(stock.first_stage_model)
        inner.decode = lambda z: stock.first_stage_model.decode(z).clamp(-1, 1)
        clamped.first_stage_model = inner
        compare(nodes.VAEDecodeTiled, "192x160", clamped, samples=latents, **tiles)
        compare(nodes.VAEDecodeTiled, "192x160, blended unclamped", samples=latents, **tiles)
        each = copy.copy(stock)
        each.not_video = True
        compare(nodes.VAEEncode, "3 pictures of 96x64", each, pixels=torch.rand(3, 64, 96, 3))
        held = ours.patcher.loaded_size()
        model_management.unload_all_models()
        left = ours.patcher.loaded_size()
        compare(nodes.VAEDecode, "192x160, after unloading", samples=latents)
        other = comfy.sd.VAE(sd={name: value + 0.01 for name, value in tensors.items()})
        try:
            load(other, str(engines), "onnxruntime")
            refusal = ""
        except Exception as error:  # noqa: BLE001  # of a class that this script need not know
            refusal = str(error).partition(": ")[2].partition(":")[0]
    by_engines = [case for case in cases if "stock" not in case["input"]]
    found = {
        "comfyui": comfyui_version.__version__,
        "torch": torch.__version__,
        "worst": max(c["largest_difference"] for c in by_engines if "unclamped" not in c["input"]),
        "worst_unclamped": max(case["largest_difference"] for case in by_engines),
        "bytes_told": held,
        "bytes_told_after_unloading": left,
        "other_weights": refusal,
        "cases": cases,
    }
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0 if refusal and left == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
