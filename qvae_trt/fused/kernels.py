"""The functions of the fused path that are Triton kernels, under one name for the network."""

from __future__ import annotations

from qvae_trt.fused.attention import attend
from qvae_trt.fused.norms import average, sum_norm
from qvae_trt.fused.pixels import head, stem

__all__ = ["attend", "average", "head", "stem", "sum_norm"]
