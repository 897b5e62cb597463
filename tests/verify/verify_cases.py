"""What the tests of the comparison share: one size, bounds, noise."""

from __future__ import annotations

import numpy as np
from verify_engines import SIZES

from qvae_trt.commands import build_command
from qvae_trt.model import BUNDLED_TINY
from qvae_trt.profiles import Resolution
from qvae_trt.verify import BOUNDS, ParityRow
from qvae_trt.verify.bounds import compare

SIZE = Resolution(64, 96)


FP16 = BOUNDS["fp16"]


def noise(like, scale, seed=0):
    return (scale * np.random.default_rng(seed).standard_normal(like.shape)).astype(np.float32)


def check(reference, engine, *, output="images", bounds=FP16, bf16=6e-3):
    """One output, with a yardstick whose error has this standard deviation."""
    yardstick = {output: reference + noise(reference, bf16, seed=1)}
    return compare({output: reference}, yardstick, {output: engine}, bounds)[output]


def broken(comparison):
    return {verdict.metric for verdict in comparison.checks if not verdict.passed}


def row(status, comparison=None, reason="", fix=None):
    return ParityRow(
        engine="static/1664x928/vae_decoder.onnx",
        part="decoder",
        mode="static",
        status=status,
        reason=reason,
        flavour="onnxruntime",
        precision="fp16",
        resolution=SIZE,
        input="encoded",
        output="images",
        comparison=comparison,
        fix=fix,
    )


def general(folder, **more):
    """The command that builds the decoder of `SIZES[0]` in a folder, from what is in use."""
    return build_command(
        "static",
        SIZES[0],
        part="decoder",
        model=BUNDLED_TINY,
        backend="onnxruntime",
        engine_dir=folder,
        **more,
    )
