"""What every backend is asked: verdicts."""

from __future__ import annotations

import pytest

from qvae_trt.backends import Verdict
from qvae_trt.errors import BackendError


def test_verdict() -> None:
    Verdict(True, "fine").require()
    with pytest.raises(BackendError, match="no GPU") as caught:
        Verdict(False, "no GPU", "buy one").require()
    assert caught.value.fix == "buy one"
