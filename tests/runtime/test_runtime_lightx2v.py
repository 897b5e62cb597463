"""LightX2V: its configuration, what its runner calls, and what its loader demands of a folder."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import ort_engines
import pytest
import torch
from fake_gpus import H200, put_gpu
from hypothesis import given, settings
from hypothesis import strategies as st
from ort_engines import STATIC, WIDE, tiny
from PIL import Image

import qvae_trt
from qvae_trt.backends import BuildSpec
from qvae_trt.backends.tensorrt import TensorRT
from qvae_trt.errors import EngineError, QvaeError, UsageError
from qvae_trt.export import export_onnx
from qvae_trt.lightx2v_loader import profile_opts
from qvae_trt.profiles import PARTS, engine_path, load_profiles, load_static_sizes
from qvae_trt.runtime import lightx2v
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.lightx2v import from_lightx2v_config, pack, unpack
from qvae_trt.tensors import ShapeRange


def config(path: Path | str, **changes: object) -> dict[str, object]:
    return {
        "vae_type": "tensorrt",
        "trt_vae_config": {"trt_engine_path": str(path), "multi_profile": False},
        "vae_path": "bundled:tiny",
        "vae_scale_factor": 8,
        "in_channels": 64,
        **changes,
    }


def info(width: int, height: int, *, tensor: bool = False) -> SimpleNamespace:
    return SimpleNamespace(auto_width=width, auto_height=height, return_result_tensor=tensor)


def make(path: Path, *, multi_profile: bool = False, **changes: object):
    changes["trt_vae_config"] = {"trt_engine_path": str(path), "multi_profile": multi_profile}
    return from_lightx2v_config(
        config(path, **changes),
        fallback="raise",
        backend="onnxruntime",
        device="cpu",
        dtype=torch.float32,
    )


def statistics() -> list[torch.Tensor]:
    config = tiny().vae.config
    return [torch.tensor(v).view(1, 16, 1, 1, 1) for v in (config.latents_mean, config.latents_std)]


def reference_tokens(image: torch.Tensor) -> torch.Tensor:
    """Normalised tokens by diffusers' own VAE and pipeline."""
    from diffusers import QwenImageEditPipeline

    vae = tiny().vae
    mean, std = (
        torch.tensor(v).view(1, 16, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    z = (vae.encode(image).latent_dist.mode() - mean) / std
    return QwenImageEditPipeline._pack_latents(z, z.shape[0], 16, z.shape[3], z.shape[4])


def reference_pixels(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    from diffusers import QwenImagePipeline

    vae = tiny().vae
    mean, std = (
        torch.tensor(v).view(1, 16, 1, 1, 1)
        for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    z = QwenImagePipeline._unpack_latents(tokens, height, width, 8)
    return vae.decode(z * std + mean).sample[:, :, 0]


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand((batch, 3, 1, height, width), generator=generator) * 2 - 1


@pytest.mark.parametrize("multi_profile", [False, True])
def test_it_encodes_and_decodes_as_diffusers_does(engine_dir, multi_profile):
    folder = engine_dir / ("profiles" if multi_profile else "static")
    vae = make(folder, multi_profile=multi_profile)
    x = picture(64, 96)
    tokens = vae.encode_vae_image(x)
    assert tokens.shape == (1, 4 * 6, 64)
    torch.testing.assert_close(tokens, reference_tokens(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(vae.encode_vae_image(x[:, :, 0]), tokens, rtol=0, atol=0)
    pixels = vae.decode(tokens, info(96, 64, tensor=True))
    expected = reference_pixels(tokens, 64, 96) / 2 + 0.5
    torch.testing.assert_close(pixels, expected, atol=1e-4, rtol=0)
    (picture_of_it,) = vae.decode(tokens, info(96, 64))
    assert isinstance(picture_of_it, Image.Image)
    assert picture_of_it.size == (96, 64)
    assert vae.vae.memory()["engines"] == 2


def test_latents_are_only_packed(engine_dir):
    z = torch.randn(1, 16, 1, 8, 12)
    tokens = make(engine_dir / "static").encode_vae_image(z)
    torch.testing.assert_close(unpack(tokens, 64, 96)[:, 0], z[:, :, 0], rtol=0, atol=0)


def test_only_the_folder_named_is_used(engine_dir):
    """A static folder serves its sizes; the profiles beside it were not asked for."""
    vae = make(engine_dir / "static")
    with pytest.raises(EngineError, match="no folder of such engines was given"):
        vae.encode_vae_image(picture(64, 64))


def test_the_folder_may_have_any_name(engine_dir, tmp_path):
    shutil.copytree(engine_dir / "static", tmp_path / "my engines")
    assert make(tmp_path / "my engines").encode_vae_image(picture(64, 96)).shape == (1, 24, 64)


def test_a_missing_folder_falls_back_and_says_so(tmp_path):
    vae = from_lightx2v_config(config(tmp_path / "none"), device="cpu", dtype=torch.float32)
    with pytest.warns(FallbackWarning, match="no file"):
        tokens = vae.encode_vae_image(picture(64, 96))
    torch.testing.assert_close(tokens, reference_tokens(picture(64, 96)), atol=1e-3, rtol=1e-3)


def test_layered_gives_every_layer_of_every_picture(engine_dir):
    vae = make(engine_dir / "static", layered=True, layers=3)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn((2, 4, 16, 8, 12), generator=generator)  # picture, composite + 3 layers
    tokens = torch.cat([pack(z[:, i].unsqueeze(2)) for i in range(4)], dim=1)
    torch.testing.assert_close(unpack(tokens, 64, 96, frames=4), z, rtol=0, atol=0)
    found = vae.decode(tokens, info(96, 64, tensor=True))
    assert [len(layers) for layers in found] == [3, 3]
    for index, layers in enumerate(found):
        for layer in range(3):
            one = pack(z[index : index + 1, layer + 1].unsqueeze(2))
            expected = reference_pixels(one, 64, 96)[0] / 2 + 0.5
            torch.testing.assert_close(layers[layer], expected, atol=1e-4, rtol=0)
    assert [[p.size for p in row] for row in vae.decode(tokens, info(96, 64))] == [
        [(96, 64)] * 3
    ] * 2


def test_dtype_offload_and_tiling_come_from_the_configuration(engine_dir, monkeypatch):
    monkeypatch.setenv("DTYPE", "FP16")
    vae = from_lightx2v_config(
        config(engine_dir / "static", vae_cpu_offload=True, use_tiling_vae=True), device="cpu"
    )
    assert vae.dtype == torch.float16
    assert vae.vae.use_tiling
    assert vae.encode_vae_image(picture(64, 96)).dtype == torch.float16
    assert vae.vae.memory()["scratch_bytes"] == 0
    monkeypatch.setenv("DTYPE", "INT8")
    with pytest.raises(UsageError, match="DTYPE is 'INT8'"):
        from_lightx2v_config(config(engine_dir / "static"), device="cpu")


def test_booleans_may_be_texts(engine_dir):
    """As one of its public configurations has them."""
    vae = make(engine_dir / "static", cpu_offload="true", use_tiling_vae="True", layered="false")
    assert vae.vae.use_tiling
    assert (vae.offload, vae.layers) == (True, None)


@pytest.mark.parametrize("number", [np.int64, np.int32, torch.tensor])
def test_sizes_may_be_whole_numbers_of_any_library(engine_dir, number):
    vae = make(engine_dir / "static", in_channels=number(64), layers=number(4))
    tokens = torch.zeros(1, 4 * 6, 64)
    size = SimpleNamespace(auto_width=number(96), auto_height=number(64))
    assert vae.decode(tokens, size)[0].size == (96, 64)
    for wrong in (number(0), 64.0, "64", True, torch.tensor([64, 64])):
        with pytest.raises(UsageError, match="auto_height is"):
            vae.decode(tokens, SimpleNamespace(auto_width=96, auto_height=wrong))


def test_a_size_between_two_of_the_grid_is_rounded_down(engine_dir):
    """Its runner takes any size a request names, and makes the latents of the next smaller one."""
    vae = make(engine_dir / "static")
    assert vae.decode(torch.zeros(1, 4 * 6, 64), info(110, 79))[0].size == (96, 64)


def test_a_role_loads_the_half_that_it_uses(engine_dir):
    """`disagg_mode`: both roles that have a VAE make it the same way."""
    for role, use in (
        ("encoder", lambda vae: vae.encode_vae_image(picture(64, 96))),
        ("decode", lambda vae: vae.decode(torch.zeros(1, 24, 64), info(96, 64))),
    ):
        vae = make(engine_dir / "static", disagg_mode=role)
        use(vae)
        assert vae.vae.memory()["engines"] == 1


def test_keys_that_change_nothing_are_named(engine_dir):
    with pytest.warns(UserWarning, match="changes nothing: vae_decode_parallel") as told:
        make(engine_dir / "static", vae_decode_parallel=True)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(engine_dir / "static", vae_decode_parallel=False)


def test_the_folder_made_for_its_own_loader_serves_too(engine_dir, tmp_path, monkeypatch):
    """`trt_engine_path` as `qvae lightx2v` prints it, with LightX2V's names of folders."""
    monkeypatch.setattr(lightx2v, "static_folders", lambda: {"2_3": STATIC, "3_2": WIDE.opt})
    (tmp_path / "2_3").symlink_to(engine_dir / "static" / str(STATIC))
    vae = make(tmp_path)
    tokens = vae.encode_vae_image(picture(64, 96))
    torch.testing.assert_close(tokens, reference_tokens(picture(64, 96)), atol=1e-3, rtol=1e-3)
    assert pickle.loads(pickle.dumps(vae.vae)).encode(picture(64, 96)) is not None
    # An engine under a name that is not its size's is refused, as everywhere.
    (tmp_path / "3_2").symlink_to(engine_dir / "static" / str(STATIC))
    with pytest.raises(EngineError, match="built for other sizes"):
        make(tmp_path).encode_vae_image(picture(64, 64))


def test_the_vae_can_be_taken_apart(engine_dir):
    """What LightX2V's fallback does with its PyTorch VAE."""
    vae, x = make(engine_dir / "static").vae, picture(64, 96)
    with torch.no_grad():
        moments = vae.quant_conv(vae.encoder(x))
        expected = vae.encode(x).latent_dist.parameters
        torch.testing.assert_close(moments, expected, atol=1e-3, rtol=1e-3)
        z = moments[:, :16]
        pixels = vae.decoder(vae.post_quant_conv(z)).clamp(-1, 1)
        torch.testing.assert_close(pixels, vae.decode(z).sample, atol=1e-3, rtol=1e-3)
    assert next(vae.encoder.parameters()).dtype == vae.dtype


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"vae_type": "baseline"}, "expected 'tensorrt'"),
        ({"trt_vae_config": "engines"}, "trt_vae_config is a str"),
        ({"trt_vae_config": {"trt_engine_path": 7}}, "trt_engine_path is a int"),
        ({"trt_vae_config": {"multi_profile": "yes"}}, "multi_profile is a str"),
        ({"vae_path": None}, "neither vae_path nor model_path"),
        ({"layered": True, "layers": 0}, "layers is 0"),
        ({"layers": True}, "layers is a bool"),
        ({"in_channels": 128}, "in_channels is 128, expected 64"),
        ({"vae_scale_factor": 16}, "vae_scale_factor is 16, expected 8"),
        ({"cpu_offload": "yes"}, "cpu_offload is a str"),
    ],
)
def test_a_wrong_configuration_is_refused_in_words(changes, word):
    with pytest.raises(UsageError, match=word):
        from_lightx2v_config(config("engines", **changes), device="cpu")
    with pytest.raises(UsageError, match="expected a mapping"):
        from_lightx2v_config([("vae_type", "tensorrt")])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
KEYS = (
    "vae_type",
    "trt_vae_config",
    "layered",
    "layers",
    "in_channels",
    "vae_cpu_offload",
    "cpu_offload",
    "use_tiling_vae",
    "vae_scale_factor",
    "vae_decode_parallel",
    "model_path",
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_no_configuration_gives_another_exception(changes):
    with contextlib.suppress(QvaeError):
        from_lightx2v_config(
            config("engines", vae_path="random:no", **changes), backend="onnxruntime", device="cpu"
        )


@pytest.mark.parametrize("shape", [(1, 23, 64), (1, 24, 63), (24, 64), (1, 0, 64)])
def test_a_wrong_number_of_tokens_is_refused(engine_dir, shape):
    with pytest.raises(UsageError, match="got latents of shape"):
        make(engine_dir / "static").decode(torch.zeros(shape), info(96, 64))


@pytest.mark.parametrize("value", [None, [[0.0]], np.zeros((1, 3, 1, 64, 96), np.float32)])
def test_what_is_no_tensor_is_refused_in_words(engine_dir, value):
    vae = make(engine_dir / "static")
    with pytest.raises(UsageError, match=r"image is a \w+, expected a torch\.Tensor"):
        vae.encode_vae_image(value)
    with pytest.raises(UsageError, match=r"latents is a \w+, expected a torch\.Tensor"):
        vae.decode(value, SimpleNamespace(auto_width=96, auto_height=64))


def test_odd_latents_cannot_be_packed(engine_dir):
    for shape in ((0, 16, 1, 4, 4), (1, 16, 1, 0, 4)):
        with pytest.raises(UsageError, match=r"got latents of shape \("):
            pack(torch.zeros(shape))
    with pytest.raises(UsageError, match="multiples of 16"):
        make(engine_dir / "static").encode_vae_image(torch.zeros(1, 16, 1, 7, 12))
    with pytest.raises(UsageError, match="auto_height is None"):
        make(engine_dir / "static").decode(torch.zeros(1, 24, 64), SimpleNamespace(auto_width=96))


def test_the_public_name():
    assert qvae_trt.from_lightx2v_config is from_lightx2v_config


# --- what LightX2V's own loader demands: file names, one input and one output whatever their names,
# five dimensions, fp16 in and out, nine profiles of which it counts the index by its list of opts.


def test_names_are_those_it_looks_for():
    for part in PARTS:
        for size in load_static_sizes().values():
            assert engine_path(Path(), part, "static", ".trt", size).name == f"vae_{part}.trt"
        path = engine_path(Path(), part, "profiles", ".trt")
        assert str(path) == f"profiles/vae_{part}_multi_profile.trt"


def test_profiles_are_in_its_order():
    for ours, theirs in zip(load_profiles(), profile_opts(), strict=True):
        assert ours.opt == theirs or (str(ours.opt), str(theirs)) == ("1632x1088", "1620x1088")


@pytest.mark.parametrize("part", PARTS)
def test_an_engine_file_is_what_it_deserialises(tmp_path, monkeypatch, part):
    """Its steps, on files as `qvae build` makes them: bytes → engine → the two tensors.

    The encoder's is a static engine, the decoder's has two profiles.
    """
    fixed = part == "encoder"
    graph = export_onnx(tiny(), part, tmp_path / "graph.onnx", resolution=STATIC if fixed else None)
    wide = (WIDE.min, WIDE.opt, WIDE.max)
    sizes = [(STATIC,) * 3] if fixed else [wide, wide]
    spec = BuildSpec(
        ranges=tuple(
            ShapeRange(*(ort_engines.shape(part, size) for size in three)) for three in sizes
        ),
        precision="fp16",
    )
    file = tmp_path / "engine.trt"
    put_gpu(monkeypatch, H200)
    with fake_tensorrt.installed("8.6") as trt:
        backend = TensorRT("tensorrt")
        backend.build(graph.path, file, spec)
        engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(file.read_bytes())
        names = {"INPUT": [], "OUTPUT": []}
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            names[engine.get_tensor_mode(name).name].append(name)
            assert engine.get_tensor_dtype(name) == trt.DataType.HALF
            assert len(engine.get_tensor_shape(name)) == 5
        assert [len(found) for found in names.values()] == [1, 1]
        assert engine.num_optimization_profiles == len(sizes)
        channels = [engine.get_tensor_shape(found[0])[1] for found in names.values()]
        assert channels == ([3, 32] if part == "encoder" else [16, 3])
