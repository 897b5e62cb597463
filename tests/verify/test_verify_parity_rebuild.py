"""The command that builds again what failed."""

from __future__ import annotations

import dataclasses

import ort_engines
import pytest
from verify_cases import general
from verify_engines import SIZES, only

from qvae_trt import store
from qvae_trt.profiles import engine_path
from qvae_trt.verify.parity import rebuild


@pytest.mark.parametrize(
    ("command", "weights", "expected"),
    [
        ("qvae build --mode static --level 5 --engine-dir {}", None, "{} --force"),
        ("qvae build --mode static --level 5 --engine-dir={} --force", None, "{}"),
        ("qvae build --mode static --engine-dir elsewhere", None, None),
        ("qvae build --mode static --engine-dir {}", "0" * 64, None),
        ("rm -rf --engine-dir {}", None, None),
        ("qvae build 'unfinished", None, None),
        ("", None, None),
    ],
)
def test_the_command_that_mends_is_the_one_that_built(
    engines, tmp_path, command, weights, expected
):
    folder = only(engines, tmp_path, "static")
    path = engine_path(folder, "decoder", "static", ".onnx", SIZES[0])
    sidecar = store.read_sidecar(path)
    key = dataclasses.replace(
        sidecar.key, weights_sha256=weights or ort_engines.tiny().weights_sha256
    )
    sidecar = dataclasses.replace(sidecar, key=key, command=command.format(folder))
    place = store.EngineFile(path, "decoder", "static", SIZES[0])
    found = rebuild(place, sidecar, model=ort_engines.tiny(), force=True)
    assert found == (
        f"{general(folder, precision='fp16')} --force"
        if expected is None
        else expected.format(sidecar.command)
    )
