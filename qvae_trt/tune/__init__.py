"""The fastest correct way to build engines on this machine: measured, kept in a file, followed.

`tune` measures and writes, `follow` is what `build` reads; `record` documents the file.
"""

from __future__ import annotations

from qvae_trt.tune.follow import FILE_NAME, Followed, built_otherwise, follow
from qvae_trt.tune.record import (
    Measurement,
    Parity,
    Subject,
    TunedVariant,
    TuneFile,
    TuneKey,
    load,
    save,
)
from qvae_trt.tune.run import LEAST_GAIN, LIMITS, TuneResult, TuneSettings, fastest, tune
from qvae_trt.tune.variants import Variant, curated, default_variant

__all__ = ["FILE_NAME", "LEAST_GAIN", "LIMITS", "Followed", "Measurement", "Parity", "TunedVariant"]
__all__ += ["Subject", "TuneFile", "TuneKey", "TuneResult", "TuneSettings", "Variant"]
__all__ += ["built_otherwise", "curated", "default_variant", "fastest", "follow", "load", "save"]
__all__ += ["tune"]
