"""LightX2V's own TensorRT loader, unmodified, on the folder that `qvae lightx2v` made: how far its
pictures are from PyTorch's.

usage: python benchmarks/gpu/lightx2v_vae_trt.py VAE_TRT.PY FOLDER [--model M] [--out FILE]

VAE_TRT.PY is lightx2v/models/video_encoders/trt/qwen_image/vae_trt.py of a LightX2V checkout. What
it imports of LightX2V (a dtype and a device) and of loguru stands here, so that neither need be
installed. FOLDER has the engines of --model
(random:full). Needs the TensorRT that built them, and a GPU.

Exit code 1 where a picture or latents are further than 1e-2 (relative L2) from PyTorch in float32,
where an engine of FOLDER did not serve, or where there is none for a size.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import sys
import types
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qvae_trt.bench.machine import machine_facts, version_facts
from qvae_trt.folding import fold
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lowerings import PYTORCH
from qvae_trt.model import load_model
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.lightx2v import pack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qvae_trt.model import Model

DEVICE = "cuda"
BOUND = 1e-2
ERRORS = ("latents", "pixels")
STATIC = ("1584x1056", "1056x1584", "1328x1328")
PROFILES = ("1376x768", "1184x896", "1664x928")


class Log:
    """loguru's logger, and all that was said to it."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, text: str) -> None:
        self.said.append(text)

    warning = error = info


def module(name: str, **values: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__dict__.update(values)
    return made


@contextmanager
def stand_ins(log: Log, dtype: torch.dtype) -> Iterator[None]:
    """What the file imports, as long as it is loaded."""
    names = ("lightx2v", "lightx2v.utils", "lightx2v_platform", "lightx2v_platform.base")
    made = {name: module(name) for name in names}
    made["loguru"] = module("loguru", logger=log)
    made["lightx2v.utils.envs"] = module("lightx2v.utils.envs", GET_DTYPE=lambda: dtype)
    var = "lightx2v_platform.base.global_var"
    made[var] = module(var, AI_DEVICE=DEVICE)
    before = {name: sys.modules.get(name) for name in made}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, old in before.items():
            sys.modules.pop(name) if old is None else sys.modules.update({name: old})


def load_class(file: Path, log: Log, dtype: torch.dtype) -> Any:
    spec = importlib.util.spec_from_file_location("vae_trt", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    with stand_ins(log, dtype):
        spec.loader.exec_module(found)
    return found.TensorRTVAE


def compare(vae: Any, network: Any, size: Resolution) -> dict[str, float]:
    """Relative L2 of its latents and of its picture, of one random input each.

    The picture is compared before it becomes 8 bits: as a tensor in [0, 1].
    """
    mean, std = (
        torch.tensor(values, device=DEVICE).view(1, -1, 1, 1, 1)
        for values in (vae.vae_latents_mean, vae.vae_latents_std)  # its own, of Qwen-Image
    )
    z = mean.shape[1]
    generator = torch.Generator().manual_seed(size.pixels)
    picture = torch.rand((1, 3, 1, size.height, size.width), generator=generator) * 2 - 1
    latents = torch.randn((1, z, 1, *QWEN_IMAGE.latents_of(size)), generator=generator)
    picture, latents = picture.half().to(DEVICE), latents.half().to(DEVICE)
    info = types.SimpleNamespace(
        auto_width=size.width, auto_height=size.height, return_result_tensor=True
    )
    with torch.no_grad():
        moments = network.encode(picture.float())
        tokens = pack((moments[:, :z] - mean) / std)
        pixels = network.decode(latents.float() * std + mean)[:, :, 0] / 2 + 0.5
        found = vae.encode_vae_image(picture), vae.decode(pack(latents), info)
    return {
        name: float((y.float() - wanted).norm() / wanted.norm())
        for name, y, wanted in zip(ERRORS, found, (tokens, pixels), strict=True)
    }


def measure(file: Path, folder: Path, model: Model) -> dict[str, Any]:
    network = fold(model.vae, lowering=PYTORCH).float().to(DEVICE)
    rows = []
    for mode, sizes in (("static", STATIC), ("profiles", PROFILES)):
        log = Log()
        config = {
            "vae_type": "tensorrt",
            "trt_vae_config": {
                "trt_engine_path": str(folder / mode),
                "multi_profile": mode == "profiles",
            },
            "vae_path": "/nonexistent",  # so that PyTorch cannot stand in without a word
            "vae_scale_factor": 8,
            "in_channels": 64,
        }
        # fp16: its bf16 would round what is compared.
        vae = load_class(file, log, torch.float16)(config)
        for text in sizes:
            row: dict[str, Any] = {"mode": mode, "size": text}
            try:
                row |= compare(vae, network, Resolution.parse(text))
                row["ok"] = max(row[name] for name in ERRORS) <= BOUND
            except Exception as error:  # noqa: BLE001 - told in the table; the other sizes go on
                row |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:400]}
            rows.append(row)
            print(json.dumps(row), flush=True)
        rows[-1]["log"] = log.said
        del vae
        torch.cuda.empty_cache()
    errors = [row[name] for row in rows for name in ERRORS if name in row]
    return {
        "loader_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bound": BOUND,
        "worst": f"{max(errors, default=math.inf):.1e}",
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, metavar="VAE_TRT.PY")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--model", default="random:full")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    model = load_model(given.model)
    found = measure(given.file, given.folder, model)
    found |= {
        "model": given.model,
        "machine": machine_facts(DEVICE),
        "versions": version_facts(DEVICE),
    }
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(row["ok"] for row in found["rows"]) else 1)


if __name__ == "__main__":
    main()
