"""Loading the VAE from every kind of `--model`, and refusing everything else in words."""

from __future__ import annotations

import http.server
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from released_names import original_name, original_name_21
from safetensors.torch import load_file, save_file

from qvae_trt.errors import ModelError
from qvae_trt.files.values import Value
from qvae_trt.kinds import QWEN_IMAGE, QWEN_IMAGE_21
from qvae_trt.model import (
    BUNDLED_TINY,
    find_kind,
    load_model,
    random_vae,
)
from qvae_trt.model.config import check_config, infer_config
from qvae_trt.model.weights import diffusers_names, hash_tensors

TINY = Path(__file__).resolve().parents[2] / "qvae_trt" / "data" / "tiny"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SMALL = {"base_dim": 4}
OFFLINE = ("bundled:tiny", "random:full", "local folder")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE's own folder, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("small") / "vae"
    random_vae(SMALL, seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def small_21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a VAE of Qwen-Image-2.1."""
    folder = tmp_path_factory.mktemp("small-2.1")
    load_model("random:tiny-2.1").vae.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """A copy of `small` to damage."""
    return Path(shutil.copytree(small, tmp_path / "copy"))


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


# --- built in ------------------------------------------------------------------------------------


def psnr(name: str) -> float:
    skimage_data = pytest.importorskip("skimage.data")
    picture = getattr(skimage_data, name)()
    top, left = ((n - 288) // 2 for n in picture.shape[:2])
    picture = picture[top : top + 288, left : left + 288]
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, :, None]
    x = x.float() / 127.5 - 1
    vae = load_model(BUNDLED_TINY).vae
    with torch.no_grad():
        y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    return 10 * math.log10(4 / (y - x).square().mean().item())


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_the_bundled_model_reconstructs_photographs_it_was_not_trained_on(name: str) -> None:
    assert psnr(name) >= 24


def test_the_bundled_model_is_small_and_has_measured_latent_statistics() -> None:
    assert (TINY / WEIGHTS).stat().st_size <= 8 * 2**20
    assert {t.dtype for t in load_file(TINY / WEIGHTS).values()} == {torch.float16}
    model = load_model(BUNDLED_TINY)
    assert (model.source, model.input_channels, model.z_dim) == (BUNDLED_TINY, 3, 16)
    x = torch.from_numpy(pytest.importorskip("skimage.data").astronaut()[:256, :256].copy())
    x = x.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        latents = model.vae.encode(x).latent_dist.mode()
    mean = torch.tensor(model.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(model.vae.config.latents_std).view(1, -1, 1, 1, 1)
    normal = (latents - mean) / std
    assert normal.mean().abs() < 0.5
    assert 0.5 < normal.std() < 2


def test_models_are_fp32_on_the_cpu_and_frozen() -> None:
    vae = load_model(BUNDLED_TINY).vae
    assert type(vae).__name__ == QWEN_IMAGE.class_name
    assert not vae.training
    for value in vae.state_dict().values():
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
    assert not any(value.requires_grad for value in vae.parameters())


def test_random_full_is_the_full_architecture_and_the_same_everywhere() -> None:
    model = load_model("random:full")
    assert sum(value.numel() for value in model.vae.parameters()) == 126_892_531
    # Of the weights, not of a torch version: any machine must give this one.
    expected = "80c350f5d48f144d8c86016bffbebc5c307b28d86108d6e643d5896a0888eae2"
    assert model.weights_sha256 == expected
    with torch.no_grad():
        x = torch.rand(1, 3, 1, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        moments = model.vae.encode(x).latent_dist
        y = model.vae.decode(moments.mode()).sample
        other = model.vae.decode(torch.zeros_like(moments.mean)).sample
    assert 0.3 < moments.mean.std() < 3
    assert -9 < moments.logvar.mean() < -3
    assert 0.15 < y.std() < 0.6
    assert (y.abs() == 1).float().mean() < 0.05
    assert (y - other).std() > 0.1, "the output does not depend on the latents"


def test_random_rgba_has_four_channels() -> None:
    model = load_model("random:full-rgba")
    assert model.input_channels == 4
    assert model.vae.decoder.conv_out.weight.shape[:2] == (4, 96)


def test_random_2_1_keeps_values_of_use() -> None:
    model = load_model("random:tiny-2.1")
    assert (model.kind, model.input_channels, model.z_dim) == (QWEN_IMAGE_21, 4, 64)
    with torch.no_grad():
        x = torch.rand(1, 4, 1, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        moments = model.vae.encode(x).latent_dist
        y = model.vae.decode(moments.mode()).sample
    assert 0.3 < moments.mean.std() < 3
    assert -9 < moments.logvar.mean() < -3
    assert 0.1 < y.std() < 0.8
    assert (y.abs() == 1).float().mean() < 0.2


def test_full_2_1_has_the_published_widths() -> None:
    from qvae_trt.model import SEEDED
    from qvae_trt.model.seeded import empty_vae

    kind, config = SEEDED["random:full-2.1"]
    vae = empty_vae(config, kind)
    assert sum(value.numel() for value in vae.parameters()) == 337_740_404
    assert vae.encoder.norm_out.gamma.numel() == 768
    assert vae.decoder.conv_in.out_channels == 1152


def test_the_kind_is_known_without_the_weights(small: Path, small_21: Path) -> None:
    assert find_kind("random:full-2.1") == QWEN_IMAGE_21
    assert find_kind(QWEN_IMAGE_21.hub_id) == QWEN_IMAGE_21  # and no hub is asked
    assert find_kind(str(small)) == find_kind(str(small / WEIGHTS)) == QWEN_IMAGE
    assert find_kind(str(small_21)) == find_kind(str(small_21 / WEIGHTS)) == QWEN_IMAGE_21


@pytest.mark.parametrize("layout", ["folder", "pipeline", "file", "original names"])
def test_2_1_from_every_place(small_21: Path, tmp_path: Path, layout: str) -> None:
    expected = load_model("random:tiny-2.1")
    place = small_21
    if layout == "pipeline":
        shutil.copytree(small_21, tmp_path / "vae")
        place = tmp_path
    elif layout == "file":
        place = shutil.copy(small_21 / WEIGHTS, tmp_path)
    elif layout == "original names":
        tensors = load_file(small_21 / WEIGHTS)
        place = tmp_path / "qwen_image_2.1_vae.safetensors"
        named = {original_name_21(name): value for name, value in tensors.items()}
        assert "decoder.upsamples.3.upsamples.2.resample.1.weight" in named
        save_file(named, place)
    found = load_model(str(place))
    assert found.weights_sha256 == expected.weights_sha256
    assert found.kind == QWEN_IMAGE_21
    for name in ("base_dim", "decoder_base_dim", "dim_mult", "temperal_downsample", "z_dim"):
        assert found.vae.config[name] == expected.vae.config[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch_size": 2}, "patch_size: expected 1, as Qwen-Image-2.1 has it, found 2"),
        ({"scale_factor_spatial": 8}, "scale_factor_spatial"),
        ({"dim_mult": [1, 2, 4, 8]}, "dim_mult"),
        ({"out_channels": 3}, "in_channels and out_channels"),
        ({"is_residual": "yes"}, "is_residual"),
        ({"decoder_base_dim": 10**9}, "decoder_base_dim"),
    ],
    ids=str,
)
def test_damaged_configurations_of_2_1(
    small_21: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    folder = shutil.copytree(small_21, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_model(str(folder))


def test_a_diffusers_without_the_class_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    monkeypatch.setattr(diffusers, QWEN_IMAGE_21.class_name, None)
    with pytest.raises(ModelError, match="has no AutoencoderKLQwenImage21"):
        load_model("random:tiny-2.1")


def test_seeds_differ() -> None:
    first, same, other = (random_vae(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert hash_tensors(first.items()) == hash_tensors(same.items())
    assert hash_tensors(first.items()) != hash_tensors(other.items())


# --- folders and files ---------------------------------------------------------------------------


def test_a_vae_folder_a_pipeline_folder_and_its_file_are_the_same_model(
    small: Path, tmp_path: Path
) -> None:
    pipeline = tmp_path / "a pipeline é"
    shutil.copytree(small, pipeline / "vae")
    (pipeline / "model_index.json").write_text("{}")
    loaded = [load_model(str(path)) for path in (small, pipeline, small / WEIGHTS)]
    assert len({model.weights_sha256 for model in loaded}) == 1
    expected = random_vae(SMALL, seed=1)
    x = torch.rand(1, 3, 1, 16, 32) * 2 - 1
    with torch.no_grad():
        wanted = expected.encode(x).latent_dist.mean
        for model in loaded:
            assert torch.equal(model.vae.encode(x).latent_dist.mean, wanted)


def test_relative_paths_and_home(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(small.parent)
    monkeypatch.setenv("HOME", str(small.parent))
    hashes = {load_model(name).weights_sha256 for name in ("vae", "./vae", "~/vae", ".")}
    assert len(hashes) == 1


def test_shards_are_read_together(copy: Path) -> None:
    whole = load_model(str(copy)).weights_sha256
    tensors = load_file(copy / WEIGHTS)
    names = sorted(tensors)
    for i, part in enumerate((names[:50], names[50:])):
        part_path = copy / f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, part_path)
    (copy / WEIGHTS).unlink()
    assert load_model(str(copy)).weights_sha256 == whole
    part_path.unlink()
    with pytest.raises(ModelError, match=r"found \S+1-of-00002\.\w+, expected 2 shards: half"):
        load_model(str(copy))


def save_shards(folder: Path, seed: int, **options: object) -> str:
    """A VAE in several files with their index, as diffusers saves them; the hash of its weights."""
    vae = random_vae(SMALL, seed=seed)
    vae.save_pretrained(folder, **options)
    assert len(list(folder.glob("*-of-*.safetensors"))) > 2
    return hash_tensors(vae.state_dict().items())


def of_diffusers(folder: Path) -> str:
    from diffusers import AutoencoderKLQwenImage

    vae = AutoencoderKLQwenImage.from_pretrained(folder, torch_dtype=torch.float32)
    return hash_tensors(vae.state_dict().items())


@pytest.mark.parametrize("lost", [0, 2])
def test_weights_come_from_the_files_in_the_index(lost: int, tmp_path: Path) -> None:
    wanted = save_shards(tmp_path / "a", 1, max_shard_size="100KB")
    save_shards(tmp_path / "b", 2, max_shard_size="50KB")
    others = sorted((tmp_path / "b").glob("*.safetensors"))
    for path in others[lost:]:
        assert not (tmp_path / "a" / path.name).exists()
        shutil.copy(path, tmp_path / "a")
    assert load_model(str(tmp_path / "a")).weights_sha256 == wanted == of_diffusers(tmp_path / "a")


def test_a_file_that_the_index_names_is_missing(tmp_path: Path) -> None:
    save_shards(tmp_path, 1, max_shard_size="100KB")
    first, second, *_ = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(ModelError, match=f"names files that are not there: {first.name}: half"):
        load_model(str(tmp_path))
    shutil.copy(second, first)
    with pytest.raises(ModelError, match=f" is in {first.name} and {second.name}"):
        load_model(str(tmp_path))


def test_one_file_beside_an_index_is_ambiguous(tmp_path: Path) -> None:
    sharded = save_shards(tmp_path, 1, max_shard_size="100KB")
    random_vae(SMALL, seed=2).save_pretrained(tmp_path / "one")
    shutil.copy(tmp_path / "one" / WEIGHTS, tmp_path)
    with pytest.raises(ModelError, match=f"found {INDEX}, {WEIGHTS}, expected .*not clear"):
        load_model(str(tmp_path))
    assert load_model(str(tmp_path / WEIGHTS)).weights_sha256 != sharded
    (tmp_path / WEIGHTS).unlink()
    assert load_model(str(tmp_path)).weights_sha256 == sharded


def test_an_index_may_name_the_one_file(copy: Path) -> None:
    names = dict.fromkeys(load_file(copy / WEIGHTS), WEIGHTS)
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert load_model(str(copy)).weights_sha256 == of_diffusers(copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "expected a table of names"),
        ("{}", "weight_map: missing"),
        ('{"weight_map": {}}', "names no file"),
        ('{"weight_map": {"a": 1}}', "expected text"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "names '../x.safetensors', expected"),
        ('{"weight_map": {"a": "x.bin"}}', "names 'x.bin', expected"),
        ('{"weight_map": {"a": "x.safetensors"}}', "not there: x.safetensors"),
    ],
)
def test_a_malformed_index(text: str, words: str, copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "a.safetensors")
    (copy / INDEX).write_text(text)
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        load_model(str(copy))
    assert INDEX in caught.value.what


def test_a_variant_is_read_where_there_is_nothing_else(tmp_path: Path) -> None:
    half = save_shards(tmp_path, 1, max_shard_size="100KB", variant="fp16")
    assert load_model(str(tmp_path)).weights_sha256 == half
    random_vae(SMALL, seed=2).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).weights_sha256 == of_diffusers(tmp_path) != half
    (tmp_path / WEIGHTS).unlink()
    save_shards(tmp_path, 3, max_shard_size="100KB", variant="bf16")
    with pytest.raises(ModelError, match=r"found .*index\.bf16\.json, .*index\.fp16\.json, exp"):
        load_model(str(tmp_path))


def test_shards_of_two_sets_without_an_index(tmp_path: Path) -> None:
    whole = save_shards(tmp_path, 1, max_shard_size="100KB")
    (tmp_path / INDEX).unlink()
    assert load_model(str(tmp_path)).weights_sha256 == whole
    save_shards(tmp_path / "b", 2, max_shard_size="50KB")
    other = min((tmp_path / "b").glob("*.safetensors"))
    shutil.copy(other, tmp_path)
    with pytest.raises(ModelError, match=f"found .*{other.name}.*not clear"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_hash_as_the_fp32_that_they_become(copy: Path, dtype: torch.dtype) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file({name: value.to(dtype) for name, value in tensors.items()}, copy / WEIGHTS)
    expected = hash_tensors((name, value.to(dtype).float()) for name, value in tensors.items())
    assert load_model(str(copy)).weights_sha256 == expected


@pytest.mark.parametrize(
    "config",
    [
        {"base_dim": 8},
        {"base_dim": 4, "input_channels": 4},
        {"base_dim": 4, "num_res_blocks": 1},
        {"base_dim": 4, "dim_mult": [1, 2, 2, 4]},
        {"base_dim": 4, "temperal_downsample": [True, False, True]},
    ],
    ids=str,
)
def test_a_single_file_tells_its_configuration(config: dict[str, object], tmp_path: Path) -> None:
    vae = random_vae(config, seed=3)
    save_file(dict(vae.state_dict()), tmp_path / "any name.safetensors")
    model = load_model(str(tmp_path / "any name.safetensors"))
    assert {name: model.vae.config[name] for name in config} == config
    assert model.weights_sha256 == hash_tensors(vae.state_dict().items())


def test_a_single_file_takes_latent_statistics_from_its_own_config_alone(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["latents_mean"] = [0.5] * 16
    (copy / "config.json").write_text(json.dumps(config))
    assert load_model(str(copy / WEIGHTS)).vae.config.latents_mean == [0.5] * 16
    config["base_dim"] = 96
    (copy / "config.json").write_text(json.dumps(config))
    assert load_model(str(copy / WEIGHTS)).vae.config.latents_mean != [0.5] * 16


def test_original_key_names_load(tmp_path: Path) -> None:
    vae = random_vae(SMALL, seed=4)
    tensors = {original_name(name): value for name, value in vae.state_dict().items()}
    assert "decoder.upsamples.3.time_conv.weight" in tensors
    assert "decoder.middle.0.residual.0.gamma" in tensors
    save_file(tensors, tmp_path / "qwen_image_vae.safetensors")
    model = load_model(str(tmp_path / "qwen_image_vae.safetensors"))
    assert model.weights_sha256 == hash_tensors(vae.state_dict().items())


def test_original_key_names_are_those_of_diffusers_converter() -> None:
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    state = random_vae(SMALL).state_dict()
    tensors = {original_name(name): value for name, value in state.items()}
    new = diffusers_names(tensors, where="x")
    ours = {new[name]: value for name, value in tensors.items()}
    theirs = utils.convert_wan_vae_to_diffusers(dict(tensors))
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize(
    "prefix",
    ["vae.", "first_stage_model.", "_orig_mod.", "module.", "vae._orig_mod.", "_orig_mod.vae."],
)
def test_a_prefix_before_every_name(prefix: str, layout: str, copy: Path) -> None:
    whole = load_model(str(copy)).weights_sha256
    renamed = original_name if layout == "original" else str
    tensors = {prefix + renamed(name): t for name, t in load_file(copy / WEIGHTS).items()}
    save_file(tensors, copy / WEIGHTS)
    for source in (copy, copy / WEIGHTS):
        assert load_model(str(source)).weights_sha256 == whole


def test_halves_that_were_compiled_one_by_one(copy: Path) -> None:
    whole = load_model(str(copy)).weights_sha256
    tensors = load_file(copy / WEIGHTS)
    for part in ("encoder", "decoder"):
        tensors = {n.replace(f"{part}.", f"{part}._orig_mod.", 1): t for n, t in tensors.items()}
    save_file(tensors, copy / WEIGHTS)
    assert load_model(str(copy)).weights_sha256 == whole


def test_the_vae_in_a_whole_checkpoint(copy: Path) -> None:
    whole = load_model(str(copy)).weights_sha256
    tensors = {f"vae.{name}": value for name, value in load_file(copy / WEIGHTS).items()}
    tensors["model.diffusion_model.x.weight"] = torch.full((2, 2), float("nan"))
    save_file(tensors, copy / "checkpoint.safetensors")
    assert load_model(str(copy / "checkpoint.safetensors")).weights_sha256 == whole
    save_file({**tensors, "vae.x": torch.zeros(1)}, copy / "checkpoint.safetensors")
    with pytest.raises(ModelError, match=r"1 tensors that the model does not have \(x\)"):
        load_model(str(copy / "checkpoint.safetensors"))


def test_two_vaes_in_one_file_and_a_tensor_twice(copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file(
        tensors | {f"ema.{n}": t.clone() for n, t in tensors.items()}, copy / "two.safetensors"
    )
    with pytest.raises(ModelError, match=r"several VAEs, ''; 'ema\.', expected one"):
        load_model(str(copy / "two.safetensors"))
    twice = {"encoder._orig_mod.conv_in.bias": torch.zeros(4)}
    save_file(tensors | twice, copy / "twice.safetensors")
    with pytest.raises(ModelError, match=r"several tensors are encoder\.conv_in\.bias"):
        load_model(str(copy / "twice.safetensors"))


@pytest.mark.parametrize("rename", ["encoder.conv_in", "decoder.mid_block", "post_quant_conv"])
def test_an_unknown_layout_names_those_that_are_known(rename: str, copy: Path) -> None:
    tensors = load_file(copy / WEIGHTS)
    save_file({n.replace(rename, "other.layout"): t for n, t in tensors.items()}, copy / WEIGHTS)
    for source in (copy, copy / WEIGHTS):
        with pytest.raises(ModelError) as caught:
            load_model(str(source))
        for word in ("encoder.conv_in.weight", "encoder.conv1.weight", "ComfyUI", "vae."):
            assert word in str(caught.value.fix)


@pytest.mark.parametrize(
    "name",
    [
        "quant_conv.weight",
        "post_quant_conv.weight",
        "encoder.conv_in.weight",
        "decoder.conv_out.weight",
        "decoder.norm_out.gamma",
        "decoder.up_blocks.0.upsamplers.0.resample.1.weight",
    ],
)
def test_a_layer_of_zeros_that_all_passes_through_is_said(name: str, copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors[name].zero_())
    for source in (copy, copy / WEIGHTS):
        with pytest.warns(UserWarning, match=f"{re.escape(name)}: only zeros"):
            load_model(str(source))


def test_zeros_in_a_residual_branch_need_no_warning(
    copy: Path, recwarn: pytest.WarningsRecorder
) -> None:
    branch = "decoder.mid_block.resnets.0.conv2.weight"
    rewrite(copy, lambda tensors: (tensors[branch].zero_(), tensors["quant_conv.bias"].zero_()))
    load_model(str(copy))
    assert not [w for w in recwarn if "zeros" in str(w.message)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_json_with_a_byte_order_mark(encoding: str, tmp_path: Path) -> None:
    whole = save_shards(tmp_path, 1, max_shard_size="100KB")
    for name in ("config.json", INDEX):
        (tmp_path / name).write_text((tmp_path / name).read_text(), encoding=encoding)
    assert load_model(str(tmp_path)).weights_sha256 == whole


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no such file"),
        ("no such model", "no such file or folder"),
        ("./nothing/here", "no such file or folder"),
        ("nothing.safetensors", "no such file"),
        ("nothing/weights.bin", "no such file"),
        ("bundled:huge", "no such built-in"),
        ("random:", "no such built-in"),
        ("a\0b", "no such file"),
        ("x/" * 5000, "no such file"),
        ("~nobody-of-that-name/x/y", "no such file"),
        ("one/two/three", "no such file"),
    ],
)
def test_unknown_sources_name_the_offline_choices(source: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_model(source)
    assert all(choice in str(caught.value) for choice in OFFLINE)


def test_a_folder_that_is_no_vae(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a VAE's folder: expected config\.json"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AutoencoderKLWan", "AutoencoderKLWan, expected .*videos"),
        ("AutoencoderKL", "AutoencoderKL, expected .*not a VAE of the Qwen-Image family"),
        (None, "class None"),
    ],
)
def test_other_classes_are_refused_by_name(copy: Path, name: str | None, words: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["_class_name"] = name
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=words):
        load_model(str(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"base_dim": 0},
        {"base_dim": "96"},
        {"base_dim": 10**9},
        {"base_dim": True},
        {"z_dim": -1},
        {"num_res_blocks": 10**6},
        {"input_channels": 5},
        {"dim_mult": [1, 2]},
        {"dim_mult": 4},
        {"temperal_downsample": [1, 2, 3]},
        {"temperal_downsample": [True, True]},
        {"attn_scales": [0.5]},
        {"latents_mean": [0.0]},
        {"latents_std": [0.0] * 16},
    ],
    ids=str,
)
def test_damaged_configurations(copy: Path, change: dict[str, object]) -> None:
    config = json.loads((copy / "config.json").read_text()) | change
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=next(iter(change))):
        load_model(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\udcff", "[" * 100_000])
def test_a_config_that_is_no_json_object(copy: Path, text: str) -> None:
    (copy / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(copy))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)
fields = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample")
fields += ("input_channels", "latents_mean", "latents_std", "dropout")


@given(st.dictionaries(st.sampled_from(fields), json_values) | json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_is_a_configuration_or_a_model_error(raw: object) -> None:
    if isinstance(raw, dict):
        raw = {"_class_name": QWEN_IMAGE.class_name, **raw}
    try:
        _, config = check_config(Value(raw, lambda why: ModelError(f"x: {why}")))
    except ModelError as error:
        assert str(error).startswith("x: ")
    else:
        assert isinstance(raw, dict)
        assert config.keys() <= {*raw, "latents_mean", "latents_std"}


def test_missing_tensors(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.pop("decoder.conv_in.weight"))
    with pytest.raises(ModelError, match=r"1 tensors missing \(decoder\.conv_in\.weight\)"):
        load_model(str(copy))
    with pytest.raises(ModelError, match="missing"):
        load_model(str(copy / WEIGHTS))


def test_extra_tensors(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({"extra.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"1 tensors that the model does not have \(extra"):
        load_model(str(copy))


def test_wrong_shapes(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(31)}))
    with pytest.raises(ModelError, match=r"quant_conv\.bias: found \(31,\), expected \(32,\)"):
        load_model(str(copy))


def test_weights_of_another_width(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"base_dim": 8}))
    with pytest.raises(ModelError, match="another shape") as caught:
        load_model(str(copy))
    assert "and " in str(caught.value)


def test_integers_and_nan_are_refused(copy: Path) -> None:
    rewrite(copy, lambda tensors: tensors["quant_conv.bias"].fill_(float("nan")))
    with pytest.raises(ModelError, match=r"quant_conv\.bias: holds NaN"):
        load_model(str(copy))
    rewrite(copy, lambda t: t.update({"quant_conv.bias": torch.zeros(32, dtype=torch.int64)}))
    with pytest.raises(ModelError, match=r"quant_conv\.bias: found torch\.int64"):
        load_model(str(copy))


def test_another_models_file(tmp_path: Path) -> None:
    save_file({"transformer.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"has no tensor encoder\.conv_in\.weight"):
        load_model(str(tmp_path / "x.safetensors"))


def test_a_mistaken_file_is_refused_from_its_header(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(paths: object) -> None:
        raise AssertionError("read the tensors")

    rewrite(copy, lambda tensors: tensors.update({"transformer.weight": torch.zeros(1)}))
    monkeypatch.setattr("qvae_trt.model.weights.read_tensors", refuse)
    for source in (copy, copy / WEIGHTS):
        with pytest.raises(ModelError, match="does not have"):
            load_model(str(source))


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        load_model(str(tmp_path))


def test_a_file_with_other_latents(tmp_path: Path) -> None:
    shapes = {
        "encoder.conv_in.weight": (4, 3, 3, 3, 3),
        "post_quant_conv.weight": (48, 48, 1, 1, 1),
    }
    with pytest.raises(ModelError, match="found 48 latent channels, expected 16"):
        infer_config(shapes, where="x")


@pytest.mark.parametrize("part", [1, 7, 8, 9, 1000, -1000, -1])
def test_a_truncated_file(copy: Path, part: int) -> None:
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[:part])
    with pytest.raises(ModelError, match="cannot be read as safetensors") as caught:
        load_model(str(copy))
    assert "fetch it again" in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>sign in</html>", "cannot be read as safetensors"),
        (b"\xff" * 100, "cannot be read as safetensors"),
        (b"\x02\0\0\0\0\0\0\0{]", "cannot be read as safetensors"),
        (b"\x80\x04\x95pickle", "cannot be read as safetensors"),
    ],
)
def test_a_file_with_a_wrong_header(copy: Path, data: bytes, words: str) -> None:
    (copy / WEIGHTS).write_bytes(data)
    for source in (copy, copy / WEIGHTS):
        with pytest.raises(ModelError, match=words):
            load_model(str(source))


@pytest.mark.parametrize("name", [WEIGHTS, INDEX, "config.json"])
def test_a_named_pipe_does_not_block(name: str, copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "a.safetensors")
    (copy / name).unlink(missing_ok=True)
    if name == WEIGHTS:
        (copy / "a.safetensors").unlink()
    os.mkfifo(copy / name)
    words = "is not a VAE's folder" if name == "config.json" else "is a named pipe, expected a file"
    with pytest.raises(ModelError, match=words):
        load_model(str(copy))
    if name == WEIGHTS:
        with pytest.raises(ModelError, match=words):
            load_model(str(copy / name))


def test_flipped_bytes_load_or_say_so(copy: Path) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    header = int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for at in [*range(8), *rng.integers(8, 8 + header, 24).tolist()]:
        damaged = data.copy()
        damaged[at] ^= 1 << int(rng.integers(8))
        (copy / WEIGHTS).write_bytes(damaged)
        try:
            load_model(str(copy))
        except ModelError:
            refused += 1
    assert refused >= 28


def test_pickles_are_refused(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "diffusion_pytorch_model.bin")
    for source in (copy, copy / "diffusion_pytorch_model.bin"):
        with pytest.raises(ModelError, match="pickles run code"):
            load_model(str(source))


def test_a_half_downloaded_folder(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="half a download") as caught:
        load_model(str(copy))
    assert all(choice in str(caught.value) for choice in OFFLINE)


def test_several_candidates(copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "a.safetensors")
    assert load_model(str(copy)).input_channels == 3
    shutil.copy(copy / "a.safetensors", copy / "b.safetensors")
    with pytest.raises(ModelError, match=r"found a\.safetensors, b\.safetensors, expected"):
        load_model(str(copy))


# --- the hub -------------------------------------------------------------------------------------


def test_only_a_hub_id_reaches_for_the_network(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for source in (BUNDLED_TINY, str(small), str(small / WEIGHTS)):
        load_model(source)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as a download asks for; cuts files short at `limit` bytes."""

    files: dict[str, bytes]
    limit: int | None = None
    asked: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        match = re.fullmatch(r"/someone/model/resolve/main/(.*)", self.path)
        type(self).asked.append(self.path)
        data = self.files.get(match[1]) if match else None
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound" if match else "RepoNotFound")
            data = b""
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hash_of(data)}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data[: self.limit])

    def log_message(self, *args: object) -> None:
        pass


def hash_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


SCRIPT = """
import sys, time
from qvae_trt.errors import ModelError
from qvae_trt.files.values import Value
from qvae_trt.model import load_model
import huggingface_hub
for source in sys.argv[1:]:
    start = time.monotonic()
    try:
        print("loaded", load_model(source).weights_sha256)
    except ModelError as error:
        print("ModelError", str(error).replace("\\n", " | "))
    print("seconds", time.monotonic() - start)
"""


def from_hub(endpoint: str, home: Path, *sources: str) -> list[tuple[str, float]]:
    """What loading gives in a process of its own, with this hub and this cache; and its seconds."""
    env = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sources],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = done.stdout.splitlines()
    return [(lines[i], float(lines[i + 1].split()[1])) for i in range(0, len(lines), 2)]


@pytest.fixture
def hub(small: Path):
    files = {f"vae/{path.name}": path.read_bytes() for path in small.iterdir()}
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler
        server.shutdown()


def test_a_hub_repository_loads_and_then_needs_no_hub(hub, small: Path, tmp_path: Path) -> None:
    endpoint, handler = hub
    (loaded, _), (again, _), (none, _) = from_hub(
        endpoint, tmp_path, "someone/model", "someone/model", "someone/nothing"
    )
    assert loaded == again == f"loaded {load_model(str(small)).weights_sha256}"
    asked = sum(path.endswith(WEIGHTS) for path in handler.asked)
    assert asked <= 2, "a cached model was asked for again"
    assert none.startswith("ModelError someone/nothing: no such folder here")


def test_an_unreachable_hub_is_said_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        [(text, seconds)] = from_hub(endpoint, tmp_path, "Qwen/Qwen-Image")
    assert text.startswith("ModelError Qwen/Qwen-Image: not complete in the hub's cache")
    assert all(choice in text for choice in OFFLINE)
    assert seconds < 5


def test_half_a_download_is_said(hub, tmp_path: Path) -> None:
    endpoint, handler = hub
    handler.limit = 2000
    [(text, seconds)] = from_hub(endpoint, tmp_path, "someone/model")
    assert text.startswith("ModelError someone/model")
    assert all(choice in text for choice in OFFLINE)
    assert seconds < 30
    snapshots = list(tmp_path.rglob(f"snapshots/*/vae/{WEIGHTS}"))
    assert not snapshots, "half a file passes for a whole one"


def sharded(files: dict[str, bytes], folder: Path) -> str:
    """Put a VAE of several files in place of that of one; the hash of its weights."""
    wanted = save_shards(folder, 3, max_shard_size="100KB")
    files.clear()
    files.update({f"vae/{path.name}": path.read_bytes() for path in folder.iterdir()})
    return wanted


def test_a_sharded_repository_loads_and_then_needs_no_hub(hub, tmp_path: Path) -> None:
    endpoint, handler = hub
    wanted = sharded(handler.files, tmp_path / "vae")
    home = tmp_path / "home"
    (loaded, _), (again, _) = from_hub(endpoint, home, "someone/model", "someone/model")
    assert loaded == again == f"loaded {wanted}"
    assert sum(path.endswith(f"vae/{INDEX}") for path in handler.asked) <= 2, "asked for again"
    snapshot = next(home.rglob(f"snapshots/*/vae/{INDEX}")).parent
    min(snapshot.glob("*.safetensors")).unlink()
    handler.files.clear()
    [(text, _)] = from_hub(endpoint, home, "someone/model")
    assert text.startswith("ModelError someone/model: ")


def test_a_repository_of_another_class_is_refused_before_its_weights(hub, tmp_path: Path) -> None:
    endpoint, handler = hub
    config = json.loads(handler.files["vae/config.json"])
    config["_class_name"] = "AutoencoderKL"
    handler.files["vae/config.json"] = json.dumps(config).encode()
    [(text, _)] = from_hub(endpoint, tmp_path, "someone/model")
    assert "found class AutoencoderKL" in text
    assert not any(path.endswith(WEIGHTS) for path in handler.asked)
