"""Parity: do the engines compute what PyTorch computes?

Every engine that can run on this machine is run by `Engine`, as the run-time does, on inputs drawn
from a seed. Polygraphy compares it with PyTorch in fp32. Its error is measured against the one that
PyTorch has in bf16 on the same input. Bounds are in `bounds`, the inputs in `inputs`;
what the reference is, in `reference`; which sizes are run, in `parity`.
"""

from __future__ import annotations

from qvae_trt.verify.bounds import BOUNDS
from qvae_trt.verify.parity import verify
from qvae_trt.verify.report import ParityRow, VerifyReport

__all__ = ["BOUNDS", "ParityRow", "VerifyReport", "verify"]
