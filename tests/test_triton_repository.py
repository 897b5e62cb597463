"""The model repository for Triton Inference Server: its configurations, and the engines in it."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import replace
from pathlib import Path

import onnxruntime
import ort_engines
import pytest
import store_cases
from google.protobuf import text_format
from store_cases import put_engine

from qvae_trt.cli.app import main
from qvae_trt.errors import EngineError, UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.profiles import Profile, Resolution, engine_path, load_profiles
from qvae_trt.tensors import TensorSpec
from qvae_trt.triton_repository import make_repository

SIZE = Resolution(928, 1664)
NINE = load_profiles()
TYPES = {"tensor(float16)": "TYPE_FP16", "tensor(float)": "TYPE_FP32"}


@pytest.fixture(scope="module")
def protobuf():
    """Triton's own description of config.pbtxt, without the client around it."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.fail("tritonclient is not installed: make install")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(protobuf):
    def parsed(repository: Path, name: str):
        text = (repository / name / "config.pbtxt").read_text("utf-8")
        return text_format.Parse(text, protobuf.ModelConfig())

    return parsed


def put(folder: Path, part: str, profiles: tuple[Profile, ...], mode: str, **key: object) -> Path:
    path = engine_path(folder, part, mode, ".trt", profiles[0].opt)
    sides = (-1, -1) if mode == "profiles" else QWEN_IMAGE.latents_of(profiles[0].opt)
    sidecar = replace(
        store_cases.make_sidecar(part=part, mode=mode, profiles=profiles, **key),
        input=TensorSpec("latents", "float16", (1, 16, 1, *sides)),
        output=TensorSpec("pixels", "bfloat16", (1, 3, 1, *(8 * s if s > 0 else s for s in sides))),
    )
    put_engine(path, sidecar, b"engine")
    return path


def test_a_static_engine_is_a_model_of_its_shape(tmp_path, parse):
    put(tmp_path / "engines", "decoder", (Profile.fixed(SIZE),), "static")
    (model,) = make_repository(tmp_path / "engines", tmp_path / "repository")
    assert model.name == "qwen_image_vae_decoder_1664x928"
    config = parse(tmp_path / "repository", model.name)
    assert (config.name, config.backend, config.max_batch_size) == (model.name, "tensorrt", 0)
    assert list(config.input[0].dims) == [1, 16, 1, 116, 208]
    assert list(config.output[0].dims) == [1, 3, 1, 928, 1664]
    assert (config.input[0].name, config.output[0].name) == ("latents", "pixels")
    kinds = config.input[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    assert kinds[config.input[0].data_type].name == "TYPE_FP16"
    assert kinds[config.output[0].data_type].name == "TYPE_BF16"
    (group,) = config.instance_group
    assert not group.profile
    engine = tmp_path / "repository" / model.name / "1" / config.default_model_filename
    assert engine.read_bytes() == b"engine" and not engine.is_symlink()


def test_all_profiles_are_of_one_instance_with_scratch_of_their_own_size(tmp_path, parse):
    put(tmp_path / "engines", "decoder", NINE, "profiles")
    (model,) = make_repository(tmp_path / "engines", tmp_path / "repository")
    config = parse(tmp_path / "repository", model.name)
    (group,) = config.instance_group
    assert list(group.profile) == [str(index) for index in range(9)]
    assert group.count == 1
    assert list(config.input[0].dims) == [1, 16, 1, -1, -1]
    allocation = config.parameters["execution_context_allocation_strategy"]
    assert allocation.string_value == "ON_PROFILE_CHANGE"


def test_configurations_say_what_engines_that_run_have(tmp_path, tmp_path_factory, parse):
    engines = ort_engines.shared(tmp_path_factory)
    models = make_repository(engines, tmp_path / "out", backend="onnxruntime", link=True)
    assert {model.name for model in models} == {
        f"qwen_image_vae_{part}_{kind}"
        for part in ("encoder", "decoder")
        for kind in ("96x64", "profiles")
    }
    for model in models:
        config = parse(tmp_path / "out", model.name)
        assert config.backend == "onnxruntime"
        path = tmp_path / "out" / model.name / "1" / config.default_model_filename
        assert path.is_symlink()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for said, there in (
            (config.input, session.get_inputs()),
            (config.output, session.get_outputs()),
        ):
            assert len(said) == len(there) == 1
            assert said[0].name == there[0].name
            dims = [side if isinstance(side, int) else -1 for side in there[0].shape]
            assert list(said[0].dims) == dims
            kinds = said[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
            assert kinds[said[0].data_type].name == TYPES[there[0].type]


def test_what_triton_would_not_run_is_refused_and_taken_away(tmp_path):
    engines, out = tmp_path / "engines", tmp_path / "out"
    put(engines, "encoder", NINE, "profiles")
    put(engines, "decoder", NINE, "profiles")
    assert [model.reason for model in make_repository(engines, out)] == ["", ""]
    (out / "others").mkdir()
    put(engines, "encoder", NINE, "profiles", flavour="tensorrt_rtx")
    models = {model.part: model for model in make_repository(engines, out)}
    assert "found tensorrt_rtx, expected tensorrt" in models["encoder"].reason
    assert models["encoder"].fix
    assert models["decoder"].reason == ""
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    name = models["decoder"].name
    assert left == {f"{name}/config.pbtxt", f"{name}/1/model.plan"}
    assert (out / "others").is_dir()


def test_faults_of_the_two_folders(tmp_path):
    engines = tmp_path / "engines"
    with pytest.raises(EngineError, match="no such folder"):
        make_repository(engines, tmp_path / "out")
    put(engines, "decoder", NINE, "profiles")
    with pytest.raises(UsageError, match="is the engine folder"):
        make_repository(engines, engines)
    with pytest.raises(EngineError, match="no engine of onnxruntime"):
        make_repository(engines, tmp_path / "out", backend="onnxruntime")
    assert not os.path.lexists(tmp_path / "out")


def test_the_command(tmp_path, capsys):
    engines, out = tmp_path / "engines", tmp_path / "out"
    put(engines, "decoder", NINE, "profiles")
    command = ["triton", "--engine-dir", str(engines), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["models"]
    assert (told["name"], told["status"]) == ("qwen_image_vae_decoder_profiles", "served")
    assert main(command) == 0
    assert "qwen_image_vae_decoder_profiles" in capsys.readouterr().out
    put(engines, "decoder", NINE, "profiles", flavour="tensorrt_rtx")
    assert main(command) == 1
    assert "qvae build --mode profiles" in capsys.readouterr().err
