"""What the tests of tune share: rows with made-up times, and a run small enough to do."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from qvae_trt import backends
from qvae_trt.bench.results import Timing
from qvae_trt.cli import app as cli
from qvae_trt.profiles import Resolution
from qvae_trt.tune.record import Measurement, Parity, Subject, TunedVariant, TuneFile, TuneKey
from qvae_trt.tune.variants import default_variant

SIZE = Resolution(48, 64)


DEFAULT = default_variant("onnxruntime", "1", "fp16")


SUBJECT = Subject(part="decoder", resolution=SIZE, weights_sha256="a" * 64, recipe_sha256="c" * 64)


TINY = ["--model", "bundled:tiny", "--backend", "onnxruntime", "--precision", "fp32"]


TUNE = ["tune", "--resolution", "64x48", *TINY, "--part", "decoder", "--budget", "0.05"]


OTHER = "upsample=depth_to_space"


def timing(ms: float) -> Timing:
    return Timing(median_ms=ms, p10_ms=ms, p90_ms=ms, min_ms=ms, runs=3)


def measured(text: str, ms: float, status: str = "ok") -> Measurement:
    found = Measurement(subject=SUBJECT, variant=DEFAULT.changed(text), model="m", status="failed")
    if status == "failed":
        return replace(found, reason="no kernel")
    parity = Parity(psnr_db=70.0, relative_l2=1e-3)
    return replace(found, status=status, timing=timing(ms), parity=parity)


def sample() -> TuneFile:
    """A file with each kind of row."""
    here = TuneKey.here(backends.get("onnxruntime"), "fp16")
    rows = (
        measured("default", 10.0),
        replace(
            measured("attention=exp", 8.5),
            build_seconds=12.5,
            engine_bytes=2_900_000,
            memory_bytes=1 << 30,
        ),
        measured("norm=conv_spread", 1.5, "broken"),
        measured("attention_chunks=1", 0, "failed"),
    )
    choice = TunedVariant(subject=SUBJECT, variant=rows[1].variant, default_ms=10.0, complete=True)
    return TuneFile(key=here, measurements=rows, choices={"decoder": choice}, command="qvae tune")


def result(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)
