"""What a soak calls a failure; needs no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from soak import DEVICE_SLACK_BYTES, HOST_SLACK_BYTES, Soak

GOOD = Soak(
    calls_asked=100,
    threads=4,
    served={"decoder 512x512": "profile 0"},
    not_served=["encoder 512x512"],
    calls=100,
    loads=9,
    evictions=3,
    device_bytes=[10 << 30] * 4,
    host_bytes=[4 << 30] * 4,
)


def test_a_good_one():
    assert GOOD.failures == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"wrong": 1}, "1 of 100 results differ"),
        ({"calls": 99}, "99 of 100 calls"),
        ({"errors": ["thread 0: no"]}, "thread 0"),
        ({"served": {}}, "no engine serves"),
        ({"evictions": 0}, "no engine was evicted"),
        ({"device_bytes": [1]}, "device memory was not measured twice"),
        ({"device_bytes": [0, 0, *[DEVICE_SLACK_BYTES + 1] * 2]}, "device memory grew"),
        ({"host_bytes": [0, 0, *[HOST_SLACK_BYTES + 1] * 2]}, "host memory grew"),
    ],
)
def test_each_failure_is_named(change, word):
    (failure,) = replace(GOOD, **change).failures
    assert word in failure


def test_one_high_round_is_no_growth():
    high = 1 << 40
    assert replace(GOOD, host_bytes=[4 << 30, high, high, 4 << 30]).failures == []
