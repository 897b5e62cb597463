"""The fastest right way to build engines on this machine: measured, kept in a file, followed.

`tune` measures and writes, `follow` is what `build` reads; `record` documents the file.
"""

from __future__ import annotations

from qvae_trt.tune.follow import FILE_NAME, Followed, follow
from qvae_trt.tune.record import Choice, Measurement, Parity, Subject, TuneFile, TuneKey, load, save
from qvae_trt.tune.run import LIMITS, TIE, TuneEvent, TuneResult, TuneSettings, fastest, tune
from qvae_trt.tune.variants import Variant, curated, default_variant

__all__ = ["FILE_NAME", "LIMITS", "TIE", "Choice", "Followed", "Measurement", "Parity"]
__all__ += ["Subject", "TuneEvent", "TuneFile", "TuneKey", "TuneResult", "TuneSettings", "Variant"]
__all__ += ["curated", "default_variant", "fastest", "follow", "load", "save", "tune"]
