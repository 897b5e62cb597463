"""Sidecars: to JSON and back, and everything that is no sidecar."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_cases import make_sidecar, put_engine

from qvae_trt.errors import EngineError, QvaeError, StaleEngineError
from qvae_trt.profiles import Profile, Resolution, load_profiles
from qvae_trt.store import check_engine, differences, sidecar_path
from qvae_trt.store.sidecar import FORMAT_VERSION, KEY_FIELDS, parse_sidecar

WHOLE = replace(make_sidecar(), engine_sha256="d" * 64, engine_bytes=7, created="2026-01-01")
PATH = Path("vae_encoder.trt.json")


def _parse(data: object) -> object:
    return parse_sidecar(json.dumps(data).encode(), path=PATH)


@pytest.mark.parametrize(
    "sidecar",
    [
        WHOLE,
        replace(WHOLE, key=make_sidecar(profiles=load_profiles(), mode="profiles").key),
        replace(WHOLE, key=make_sidecar(compute_capability=None, gpu="cpu").key),
        replace(WHOLE, command="qvae build --engine-dir 'ü 漢'"),
    ],
)
def test_json_and_back(sidecar):
    assert parse_sidecar(sidecar.to_json().encode(), path=PATH) == sidecar


def test_it_carries_what_the_contract_says():
    data = json.loads(WHOLE.to_json())
    assert data["format_version"] == FORMAT_VERSION == 1
    assert data["engine"] == {"sha256": "d" * 64, "bytes": 7}
    assert list(data["key"]) == list(KEY_FIELDS)
    assert data["key"]["profiles"] == [{"min": "1664x928", "opt": "1664x928", "max": "1664x928"}]
    assert data["input"] == {"name": "images", "dtype": "float16", "shape": [1, 3, 1, 928, 1664]}
    assert data["command"].startswith("qvae build")


def test_it_lies_beside_the_engine():
    assert sidecar_path(Path("a/vae_encoder.trt")) == Path("a/vae_encoder.trt.json")


def test_unknown_fields_are_left_alone():
    data = WHOLE.to_dict() | {"later": 1}
    assert _parse(data) == WHOLE


def _without(name: str) -> dict[str, object]:
    data = json.loads(WHOLE.to_json())
    table = data
    *parents, last = name.split(".")
    for parent in parents:
        table = table[parent]
    del table[last]
    return data


@pytest.mark.parametrize(
    "name",
    [
        "format_version",
        "engine",
        "engine.sha256",
        "engine.bytes",
        "key",
        *(f"key.{field}" for field in KEY_FIELDS if field != "vae"),  # older ones have none
        "input",
        "input.shape",
        "output.dtype",
        "build_flags",
        "build_seconds",
        "command",
        "created",
        "qvae_version",
    ],
)
def test_a_missing_field_is_named(name):
    with pytest.raises(EngineError, match=rf"malformed sidecar: {name}: missing"):
        _parse(_without(name))


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**30])
def test_a_newer_format_is_said_to_be_one(version):
    with pytest.raises(EngineError, match="newer qvae") as caught:
        _parse({"format_version": version})
    assert f"format_version: {version}, expected at most 1" in caught.value.what
    assert caught.value.fix is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"format_version": true}',
        b'{"format_version": 0}',
        b'{"format_version": "1"}',
        b"[" * 200_000,
        b"9" * 5000,
        b" " * (2 << 20),
        WHOLE.to_json().replace("1.5", "NaN").encode(),
        WHOLE.to_json().replace("1.5", "-1").encode(),
        WHOLE.to_json().replace("1.5", "1e999").encode(),
        WHOLE.to_json().replace("1.5", "1" + "0" * 400).encode(),
        WHOLE.to_json().replace("d" * 64, "d" * 63).encode(),
        WHOLE.to_json().replace("fp16", "fp8").encode(),
        WHOLE.to_json().replace("float16", "complex").encode(),
        WHOLE.to_json().replace("1664x928", "1x1").encode(),
        WHOLE.to_json().replace("NVIDIA", "\\ud800").encode(),
        WHOLE.to_json().replace('"fp16": "true"', '"\\ud800": "true"').encode(),
        WHOLE.to_json().replace('"min": "1664x928"', '"min": "1672x928"').encode(),
        json.dumps(WHOLE.to_dict() | {"key": WHOLE.to_dict()["key"] | {"profiles": []}}).encode(),
        json.dumps(WHOLE.to_dict() | {"input": {"name": "x", "dtype": "float16"}}).encode(),
    ],
)
def test_what_is_no_sidecar_says_so(raw):
    with pytest.raises(EngineError, match="malformed sidecar") as caught:
        parse_sidecar(raw, path=PATH)
    assert caught.value.what.startswith(str(PATH))
    assert len(caught.value.what) < 500


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(st.text(), child, max_size=3),
    max_leaves=6,
)


def _places(data: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    items = ()
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, list):
        items = enumerate(data)
    return [at, *(place for key, item in items for place in _places(item, (*at, key)))]


@given(st.data(), _json)
def test_a_sidecar_with_anything_anywhere_is_read_or_refused(data, value):
    document = json.loads(WHOLE.to_json())
    *parents, last = data.draw(st.sampled_from(_places(document)[1:]))
    table = document
    for parent in parents:
        table = table[parent]
    table[last] = value
    try:
        sidecar = _parse(document)
    except QvaeError as error:
        str(error).encode()  # can be printed
        return
    sidecar.to_json().encode()
    str(differences(sidecar.key, {"gpu": "other"})).encode()


@given(st.binary() | _json.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_sidecar_or_an_engine_error(raw):
    with pytest.raises(EngineError):
        parse_sidecar(raw, path=PATH)


# --- keys ---


@pytest.mark.parametrize(
    ("name", "expected", "says"),
    [
        ("flavour", "tensorrt_rtx", "another backend: found tensorrt, expected tensorrt_rtx"),
        ("flavour_version", "11.4", "another version of its backend: found 10.16.1.11"),
        ("gpu", "NVIDIA H100", "another GPU: found NVIDIA H200, expected NVIDIA H100"),
        ("compute_capability", "12.0", "compute capability: found 9.0, expected 12.0"),
        ("part", "decoder", "other half of the VAE: found encoder"),
        ("mode", "profiles", "another mode: found static"),
        ("precision", "bf16", "another precision: found fp16"),
        ("lowering", "other", "another form of the graph: found resize,fp32,1"),
        ("profiles", (Profile.fixed(Resolution(8, 16)),), "found 1664x928, expected 16x8"),
        ("onnx_sha256", "f" * 64, "another ONNX file: found aaaaaaaaaaaa, expected ffffffffffff"),
        ("weights_sha256", "f" * 64, "other weights: found bbbbbbbbbbbb"),
        ("recipe_sha256", "f" * 64, "makes differently: found cccccccccccc"),
    ],
)
def test_each_mismatch_has_its_own_message(name, expected, says):
    found = differences(WHOLE.key, {name: expected})
    (mismatch,) = found.values()
    assert list(found) == [name]
    assert says in str(mismatch)


@pytest.mark.parametrize(
    ("other", "taken"),
    [
        ({"flavour": "tensorrt_rtx"}, True),
        ({"flavour": "tensorrt_rtx", "flavour_version": "1.1"}, True),
        ({"flavour": "tensorrt_rtx", "weights_sha256": "f" * 64}, False),
        ({"flavour_version": "1.1"}, False),
    ],
)
def test_the_backend_that_takes_an_engine_is_named(tmp_path, other, taken):
    engine = tmp_path / "vae_encoder.trt"
    put_engine(engine, WHOLE, b"engine")
    with pytest.raises(StaleEngineError) as caught:
        check_engine(engine, expected=other)
    fix = caught.value.fix or ""
    assert fix.startswith("backend='tensorrt' (--backend tensorrt) takes it; or ") is taken
    assert "rebuild it: qvae build" in fix


@pytest.mark.parametrize(
    ("command", "model"),
    [
        ("qvae build --model 'my model' --level 2", "my model"),
        ("qvae build --model=bundled:tiny --level 2", "bundled:tiny"),
        ("qvae build --model 'never closed", None),
        ("qvae build --model", None),
    ],
)
def test_the_model_of_a_rebuild_is_the_sidecars(tmp_path, command, model):
    engine = tmp_path / "profiles" / "vae_encoder_multi_profile.trt"
    put_engine(engine, replace(WHOLE, command=command), b"engine")
    with pytest.raises(StaleEngineError) as caught:
        check_engine(engine, expected={"flavour_version": "1.1"})
    words = shlex.split((caught.value.fix or "").partition("rebuild it: ")[2])
    assert words[:4] == ["qvae", "build", "--mode", "profiles"]
    named = words[words.index("--model") + 1] if "--model" in words else None
    assert named == model


def test_every_field_of_the_key_can_mismatch():
    assert list(differences(WHOLE.key, dict.fromkeys(KEY_FIELDS, "-"))) == list(KEY_FIELDS)


def test_none_fits_anything_and_equal_fits():
    same = {name: getattr(WHOLE.key, name) for name in KEY_FIELDS}
    assert differences(WHOLE.key, same) == {}
    assert differences(WHOLE.key, dict.fromkeys(KEY_FIELDS)) == {}


def test_an_engine_for_any_gpu_fits_every_gpu():
    key = make_sidecar(gpu="any", compute_capability=None).key
    assert differences(key, {"gpu": "NVIDIA H100", "compute_capability": "9.0"}) == {}
    assert list(differences(key, {"precision": "bf16", "gpu": "x"})) == ["precision"]


def test_a_field_that_does_not_exist_is_a_bug():
    with pytest.raises(ValueError, match="gpus"):
        differences(WHOLE.key, {"gpus": "x"})
