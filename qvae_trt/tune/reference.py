"""What a variant is compared with: the folded network in fp32, under the bounds of `verify`.

The fold itself is proved elsewhere (`qvae verify`, and the tests of the fold); here it stands for
PyTorch, since its activations fit where those of the Conv3d network do not.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qvae_trt.folding import fold
from qvae_trt.tune.record import Parity
from qvae_trt.verify.bounds import BOUNDS
from qvae_trt.verify.comparison import compare
from qvae_trt.verify.inputs import PICTURES, Array, picture, sampled_latents
from qvae_trt.verify.reference import exact_fp32, split_outputs

if TYPE_CHECKING:
    from pathlib import Path

    from qvae_trt.model import Model
    from qvae_trt.profiles import Part, Precision, Resolution
    from qvae_trt.verify.reference import Outputs


class FoldedReference:
    """Inputs of one part at one size, with what the folded network makes of them.

    Attributes:
        inputs: by name: (1, C, 1, H, W) pictures in [-1, 1], or (1, z, 1, h, w) latents.
    """

    def __init__(self, model: Model, part: Part, resolution: Resolution) -> None:
        self.part = part
        try:
            self._compute(model, resolution, "cuda" if torch.cuda.is_available() else "cpu")
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            self._compute(model, resolution, "cpu")

    def _compute(self, model: Model, resolution: Resolution, device: str) -> None:
        folded: Any = fold(model.vae).to(device)
        pictures = {
            name: picture(name, resolution, channels=model.input_channels) for name in PICTURES
        }
        if self.part == "encoder":
            self.inputs = pictures
        else:
            moments = _run(folded.encode, pictures[PICTURES[0]], device, torch.float32)
            config = model.vae.config
            self.inputs = {
                "encoded": split_outputs("encoder", moments)["mean"],
                "sampled": sampled_latents(
                    resolution,
                    model.kind.latents_of(resolution),
                    mean=config.latents_mean,
                    std=config.latents_std,
                ),
            }
        self._fp32 = self._all(folded, device, torch.float32)
        self._bf16 = self._all(copy.deepcopy(folded).to(torch.bfloat16), device, torch.bfloat16)
        del folded
        if device == "cuda":
            # The engines to come are measured, and want the memory.
            torch.cuda.empty_cache()

    def _all(self, folded: Any, device: str, dtype: torch.dtype) -> dict[str, Outputs]:
        call = folded.encode if self.part == "encoder" else folded.decode
        return {
            name: split_outputs(self.part, _run(call, x, device, dtype))
            for name, x in self.inputs.items()
        }

    def write_inputs(self, path: Path) -> None:
        """As `measuring.run_engine` reads them."""
        np.save(path, np.stack(list(self.inputs.values())))

    def check(self, outputs: Path, precision: Precision) -> tuple[Parity, str]:
        """Compare an engine's outputs, as `measuring.run_engine` wrote them.

        Returns: the worst figures over all inputs and outputs, and the broken bounds in words,
        empty if all hold.
        """
        psnr_db, relative_l2 = math.inf, 0.0
        broken = []
        found = np.load(outputs, allow_pickle=False)
        for name, array in zip(self.inputs, found, strict=True):
            compared = compare(
                self._fp32[name],
                self._bf16[name],
                split_outputs(self.part, array),
                BOUNDS[precision],
            )
            for output, comparison in compared.items():
                psnr_db = _worse(min, psnr_db, comparison.metrics.psnr_db)
                relative_l2 = _worse(max, relative_l2, comparison.metrics.relative_l2)
                broken += [
                    f"{output} of {name}: {v.metric} {v.value:.4g}, bound {v.bound:.4g}"
                    for v in comparison.verdicts
                    if not v.passed
                ]
        return Parity(psnr_db=_finite(psnr_db), relative_l2=_finite(relative_l2)), "; ".join(broken)


def _run(call: Any, x: Array, device: str, dtype: torch.dtype) -> Array:
    with torch.inference_mode(), exact_fp32():
        y: torch.Tensor = call(torch.from_numpy(x).to(device, dtype))
    return y.float().cpu().numpy()


def _worse(pick: Any, a: float, b: float) -> float:
    return math.nan if math.isnan(a) or math.isnan(b) else float(pick(a, b))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
