"""A tune file of a real run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tune_cases import OTHER, TUNE

from qvae_trt.cli import app as cli


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tune file of two variants; read only."""
    folder = tmp_path_factory.mktemp("tuned") / "engines"
    assert cli.main([*TUNE, "--variants", OTHER, "--engine-dir", str(folder)]) == 0
    return folder
