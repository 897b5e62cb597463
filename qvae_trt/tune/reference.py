"""What a variant is compared with: the folded network in fp32, under the bounds of `verify`.

The fold itself is proved elsewhere (`qvae verify`, and the tests of the fold).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from qvae_trt.model import Model
from qvae_trt.profiles import Part, Precision, Resolution
from qvae_trt.tune.record import Parity
from qvae_trt.verify.bounds import BOUNDS
from qvae_trt.verify.comparison import compare
from qvae_trt.verify.inputs import LATENTS, PICTURES, Array
from qvae_trt.verify.reference import Reference, split_outputs
from qvae_trt.verify.report import explain


class FoldedReference:
    """Inputs of one part at one size, with what the folded network makes of them.

    Attributes:
        inputs: by name: (1, C, 1, H, W) pictures in [-1, 1], or (1, z, 1, h, w) latents.
    """

    def __init__(self, model: Model, part: Part, resolution: Resolution) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        reference = Reference(model, device=device, folded=True)
        self.part = part
        names = PICTURES if part == "encoder" else LATENTS
        self.inputs = {name: reference.input(part, name, resolution) for name in names}
        self.fp32 = {name: reference.outputs(part, name, resolution, "fp32")[0] for name in names}
        self._bf16 = {name: reference.outputs(part, name, resolution, "bf16")[0] for name in names}
        del reference
        if device.type == "cuda":
            # The engines to come are measured, and want the memory.
            torch.cuda.empty_cache()

    def check(self, outputs: Sequence[Array], precision: Precision) -> tuple[Parity, str]:
        """Compare an engine's outputs of all inputs.

        Returns: the worst figures over all inputs and outputs, and the broken bounds in words,
        empty if all hold.
        """
        metrics, broken = [], []
        for name, array in zip(self.inputs, outputs, strict=True):
            engine, bounds = split_outputs(self.part, array), BOUNDS[precision]
            compared = compare(self.fp32[name], self._bf16[name], engine, bounds)
            for output, comparison in compared.items():
                metrics.append(comparison.metrics)
                if not comparison.passed:
                    broken.append(f"{output} of {name}: {explain(comparison.checks)}")
        parity = Parity(
            psnr_db=_worst(min, [found.psnr_db for found in metrics]),
            relative_l2=_worst(max, [found.relative_l2 for found in metrics]),
        )
        return parity, "; ".join(broken)


def _worst(pick: Any, values: list[float]) -> float | None:
    """The worst value; None if one is NaN or the worst is infinite."""
    worst = math.nan if any(map(math.isnan, values)) else float(pick(values))
    return worst if math.isfinite(worst) else None
