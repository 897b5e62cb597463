"""The process that measures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from qvae_trt.errors import EngineError
from qvae_trt.tune import run as running


def test_the_measuring_process_passes_errors_on(tmp_path: Path) -> None:
    request = {
        "engine": str(tmp_path / "none.onnx"),
        "inputs": "",
        "outputs": "",
        "limits": asdict(running.LIMITS),
    }
    with pytest.raises(EngineError, match="no such file"):
        running.measure_in_child(request, progress=lambda *_: True)
