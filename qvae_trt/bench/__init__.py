"""Latency of the VAE as PyTorch runs it and as its engines do, measured so that the figures can be
compared.

`bench` measures, `load` and `merge` read results back, `compare` finds regressions;
`qvae_trt.report` writes tables.
"""

from __future__ import annotations

from qvae_trt.bench.compare import check_comparable, compare, merge
from qvae_trt.bench.results import (
    BASELINES,
    BASELINES_ON_CPU,
    PATHS,
    REFERENCE,
    BenchResult,
    Cell,
    Floor,
    Run,
    ServiceRow,
    Timing,
    load,
    save,
    set_aside,
)
from qvae_trt.bench.run import BenchSettings, bench
from qvae_trt.bench.timing import Limits

__all__ = ["BASELINES", "BASELINES_ON_CPU", "PATHS", "REFERENCE", "BenchResult", "BenchSettings"]
__all__ += ["Cell", "Floor", "Limits", "Run", "ServiceRow", "Timing", "bench", "check_comparable"]
__all__ += ["compare", "load", "merge", "save", "set_aside"]
