"""What every backend is asked: verdicts, and specs that none takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qvae_trt.backends import BuildSpec, Verdict
from qvae_trt.errors import BackendError, UsageError
from qvae_trt.tensors import ShapeRange

if TYPE_CHECKING:
    from collections.abc import Sequence


def test_verdict() -> None:
    Verdict(True, "fine").require()
    with pytest.raises(BackendError, match="no GPU") as caught:
        Verdict(False, "no GPU", "buy one").require()
    assert caught.value.fix == "buy one"


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ((), "no shape range"),
        ((ShapeRange((1,), (1, 2), (1,)),), "expected 0 < min"),
        ((ShapeRange((2,), (1,), (3,)),), "expected 0 < min"),
    ],
)
def test_spec_that_no_backend_takes(ranges: Sequence[ShapeRange], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BuildSpec(ranges=tuple(ranges), precision="fp16").check()
