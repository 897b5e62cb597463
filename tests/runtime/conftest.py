"""Engines of the bundled VAE on the CPU."""

from __future__ import annotations

from pathlib import Path

import ort_engines
import pytest


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory) -> Path:
    """See `ort_engines.build`. Shared: copy it before changing anything."""
    return ort_engines.shared(tmp_path_factory)
