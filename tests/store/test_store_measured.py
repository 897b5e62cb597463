"""What `qvae bench` measured, kept beside the engines."""

from __future__ import annotations

import json

import pytest

from qvae_trt.errors import StoreError
from qvae_trt.profiles import Resolution
from qvae_trt.store import measured

SMALL, LARGE = Resolution(256, 256), Resolution(1024, 1024)
HERE = {"gpu": "a GPU", "torch": "2"}


@pytest.fixture
def path(tmp_path):
    return tmp_path / measured.FILE_NAME


def test_the_size_itself_or_the_nearest_one_is_compared(path):
    medians = {
        "decoder": {
            SMALL: {"fused": 3.0, "static": 2.0, "profiles": 4.0},
            LARGE: {"fused": 10.0, "static": 14.0},
        }
    }
    measured.remember(path, HERE, medians)
    found = measured.load(path)
    assert found.machine == HERE
    assert found.compare("decoder", SMALL, "static") == (3.0, 2.0)
    assert found.compare("decoder", Resolution(1024, 1088), "static") == (10.0, 14.0)
    assert found.compare("decoder", LARGE, "profiles") == (3.0, 4.0)
    assert found.compare("encoder", LARGE, "static") is None


def test_a_later_bench_adds_to_it(path):
    measured.remember(path, HERE, {"decoder": {SMALL: {"fused": 3.0}}})
    measured.remember(path, HERE, {"decoder": {SMALL: {"static": 2.0}, LARGE: {"fused": 9.0}}})
    found = measured.load(path)
    assert found.medians["decoder"][SMALL] == {"fused": 3.0, "static": 2.0}
    assert found.medians["decoder"][LARGE] == {"fused": 9.0}


@pytest.mark.parametrize("before", ["another machine", "damaged"])
def test_what_does_not_hold_here_is_written_anew(path, before):
    measured.remember(path, HERE, {"decoder": {SMALL: {"fused": 3.0}}})
    if before == "damaged":
        path.write_text("{", "utf-8")
    there = {**HERE, "gpu": "another GPU"}
    measured.remember(path, there, {"encoder": {LARGE: {"fused": 1.0}}})
    found = measured.load(path)
    assert found.machine == there
    assert found.medians["decoder"] == {}


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"decoder": {"256x256": {"fused": 0}}},
        {"decoder": {"256x256": {"other": 1.0}}},
        {"decoder": []},
        {"machine": {"gpu": 3}},
    ],
)
def test_what_is_malformed_is_refused(path, change):
    measured.remember(path, HERE, {"decoder": {SMALL: {"fused": 3.0}}})
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(StoreError, match=r"measured\.json"):
        measured.load(path)
    with pytest.raises(StoreError):
        measured.load(path.with_name("nowhere"))


def test_a_file_that_cannot_be_read_is_named_once(path):
    with pytest.raises(StoreError, match="No such file") as caught:
        measured.load(path)
    assert caught.value.what.count(str(path)) == 1
