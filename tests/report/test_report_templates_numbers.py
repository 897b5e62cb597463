"""Numbers as people read them."""

from __future__ import annotations

import pytest

from qvae_trt.report import templates as numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.1234, "0.12"),
        (9.876, "9.88"),
        (27.55, "27.6"),
        (107.2, "107.2"),
        (2304.4, "2304"),
    ],
)
def test_milliseconds(value: float | None, shown: str) -> None:
    assert numbers.ms(value) == shown


def test_other_numbers() -> None:
    assert numbers.times(3.876) == "3.88×"
    assert numbers.size(3 * 2**29) == "1.50 GiB"
    assert numbers.size(10 * 2**20) == "10 MiB"
    assert numbers.share(0.384) == "38 %"
    assert numbers.share(0.0042) == "0.42 %"
