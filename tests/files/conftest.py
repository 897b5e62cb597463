"""An engine, whose files the tests here write and read."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_cases import Built, build_engine


@pytest.fixture
def built(tmp_path: Path) -> Built:
    """An engine that is in order."""
    return build_engine(tmp_path / "engines")
