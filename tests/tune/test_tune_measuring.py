"""The process that measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.tune import run as running


def test_the_measuring_process_passes_errors_on(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        running.measure_in_child(
            tmp_path / "none.onnx", [], running.LIMITS, progress=lambda *_: True
        )
