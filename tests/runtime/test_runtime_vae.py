"""`TrtVae` where a pipeline would have diffusers' VAE: same results, same contract."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, ConfigMixin, ModelMixin
from doubles import Faulty
from ort_engines import STATIC, tiny

import qvae_trt
from qvae_trt import backends
from qvae_trt.errors import EngineError, UsageError
from qvae_trt.profiles import Resolution
from qvae_trt.runtime.vae import FallbackWarning, TrtVae, load_vae

#: Sizes (height, width) by what serves them.
SERVED = {
    "static": (STATIC.height, STATIC.width),
    "profiles": (128, 160),
    "folded": (16, 192),
    "no multiple of 8": (60, 75),
}


@pytest.fixture
def vae(engine_dir) -> TrtVae:
    return load_vae(engine_dir, model=tiny(), fallback="silent", backend="onnxruntime")


@pytest.fixture(scope="module")
def original() -> AutoencoderKLQwenImage:
    return tiny().vae


def picture(height: int, width: int, *, batch: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((batch, 3, 1, height, width), generator=generator) * 2 - 1


def latents(height: int, width: int, *, batch: int = 1) -> torch.Tensor:
    shape = (batch, 16, 1, height // 8, width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("served", SERVED)
@pytest.mark.parametrize("batch", [1, 3])
def test_results_are_those_of_diffusers(vae, original, served, batch):
    height, width = SERVED[served]
    x = picture(height, width, batch=batch)
    ours, theirs = vae.encode(x).latent_dist, original.encode(x).latent_dist
    torch.testing.assert_close(ours.parameters, theirs.parameters, atol=1e-4, rtol=1e-4)
    z = latents(height, width, batch=batch)
    y, expected = vae.decode(z).sample, original.decode(z).sample
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=0)
    if served != "no multiple of 8":
        found = vae.choice("decoder", Resolution(height, width))
        assert found.engine == served, found.explain()


def test_what_serves_is_loaded_at_first_use_and_each_part_by_itself(vae):
    assert vae.memory()["engines"] == 0
    vae.decode(latents(64, 96))
    assert vae.memory()["engines"] == 1
    vae.decode(latents(64, 96))
    assert vae.memory()["engines"] == 1
    vae.encode(picture(64, 96))
    assert vae.memory()["engines"] == 2
    vae.release_memory()
    assert vae.memory() == {"engines": 0, "engine_bytes": 0, "scratch_bytes": 0}
    vae.decode(latents(64, 96))


def test_a_warm_up_loads_and_runs_what_serves_the_sizes(engine_dir):
    backend = Faulty(backends.get("onnxruntime"))
    ran: list[str] = []
    backend.fault = lambda what, path: ran.append(path.name) if what == "execute" else None
    vae = load_vae(engine_dir, model=tiny(), fallback="raise", backend=backend)
    vae.warm_up((64, 96), parts=("decoder",))
    assert ran == ["vae_decoder.onnx"]
    vae.warm_up((64, 96), (128, 160))
    assert len(ran) == 5
    opened = list(backend.opened)
    assert len(opened) == 4
    vae.encode(picture(64, 96))
    vae.decode(latents(128, 160))
    assert backend.opened == opened
    with pytest.raises(EngineError, match="no engine serves it"):
        vae.warm_up((16, 192))


def test_a_warm_up_captures_too(engine_dir):
    """At the second run of each on scratch memory of the final size, hence after all first runs."""
    backend = Faulty(backends.get("onnxruntime"))
    ran: list[str] = []
    backend.fault = lambda what, path: ran.append(path.parent.name) if what == "execute" else None
    vae = load_vae(engine_dir, model=tiny(), fallback="raise", backend=backend, cuda_graphs=True)
    vae.warm_up((64, 96), (128, 160), parts=("decoder",))
    assert ran == ["96x64", "profiles"] * 3


def test_all_moments_are_there_and_sampling_is_reproducible(vae, original):
    x = picture(64, 96)
    dist = vae.encode(x).latent_dist
    assert dist.parameters.shape == (1, 32, 1, 8, 12)
    one, two = (dist.sample(torch.Generator().manual_seed(7)) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    theirs = original.encode(x).latent_dist.sample(torch.Generator().manual_seed(7))
    torch.testing.assert_close(one, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("served", ["static", "folded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_inputs_dtype_comes_back(vae, served, dtype):
    height, width = SERVED[served]
    x, z = picture(height, width).to(dtype), latents(height, width).to(dtype)
    assert vae.encode(x).latent_dist.mode().dtype == dtype
    assert vae.decode(z).sample.dtype == dtype
    assert vae.dtype == torch.float32, "its own dtype is not the input's"


def test_pixels_are_clamped(vae):
    for size in ((64, 96), (16, 192)):
        y = vae.decode(latents(*size) * 30).sample
        assert float(y.min()) >= -1.0
        assert float(y.max()) <= 1.0
        assert float(y.abs().max()) == 1.0, "something was there to clamp"


def test_results_survive_the_next_call(vae):
    first = vae.decode(latents(64, 96)).sample
    kept = first.clone()
    vae.decode(latents(64, 96) * -1)
    torch.testing.assert_close(first, kept, rtol=0, atol=0)


def test_tuples_and_outputs(vae):
    x = picture(64, 96)
    (dist,) = vae.encode(x, return_dict=False)
    (y,) = vae.decode(dist.mode(), return_dict=False)
    torch.testing.assert_close(y, vae.decode(dist.mode())[0])
    torch.testing.assert_close(y, vae(x).sample)
    generator = torch.Generator().manual_seed(0)
    sampled = vae(x, sample_posterior=True, generator=generator, return_dict=False)[0]
    assert sampled.shape == y.shape


def test_no_gradient_is_lost_silently(vae):
    x = picture(64, 96).requires_grad_()
    vae.encode(x).latent_dist.mode().sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert vae.memory()["engines"] == 0, "engines have no gradient: PyTorch served"


def test_video_goes_through_diffusers_own_graph(engine_dir, original):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime")
    x = picture(32, 32).repeat(1, 1, 5, 1, 1) * torch.linspace(0, 1, 5).reshape(1, 1, 5, 1, 1)
    with pytest.warns(FallbackWarning, match="5 frames"):
        dist = vae.encode(x).latent_dist
    theirs = original.encode(x).latent_dist
    assert dist.mode().shape == (1, 16, 2, 4, 4)
    torch.testing.assert_close(dist.parameters, theirs.parameters, atol=1e-4, rtol=1e-4)
    with pytest.warns(FallbackWarning, match="2 frames"):
        y = vae.decode(dist.mode()).sample
    torch.testing.assert_close(y, original.decode(dist.mode()).sample, atol=1e-4, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae.encode(x)
    strict = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="raise")
    with pytest.raises(UsageError, match="5 frames"):
        strict.encode(x)


# --- what pipelines ask besides
# --------------------------------------------------------------------


def test_it_is_what_diffusers_wants_a_vae_to_be(vae, original):
    assert isinstance(vae, ModelMixin)
    assert isinstance(vae, ConfigMixin)
    assert vae.config.z_dim == 16
    assert list(vae.config.latents_mean) == list(original.config.latents_mean)
    assert list(vae.config.latents_std) == list(original.config.latents_std)
    assert list(vae.temperal_downsample) == list(original.temperal_downsample)
    assert vae.spatial_compression_ratio == original.spatial_compression_ratio
    assert 2 ** len(vae.temperal_downsample) == 8
    assert (vae.dtype, vae.device) == (torch.float32, torch.device("cpu"))


def test_to_moves_and_casts_without_weights(vae):
    assert vae.num_parameters() == 0
    assert next(vae.parameters()).device == vae.device, "what accelerate asks"
    assert vae.to(torch.bfloat16) is vae
    assert vae.dtype == torch.bfloat16
    assert vae.to("cpu", torch.float16).dtype == torch.float16
    assert vae.half().dtype == torch.float16
    assert vae.float().dtype == torch.float32
    assert vae.to("meta").device.type == "meta"
    assert vae.eval().requires_grad_(False) is vae


def test_pytorch_computes_in_the_vaes_dtype(vae, monkeypatch):
    vae.to(torch.bfloat16)
    seen = []
    folded = vae._ladder.pytorch.folded
    monkeypatch.setattr(
        vae._ladder.pytorch,
        "folded",
        lambda part, x, dtype: (seen.append(dtype), folded(part, x, dtype))[1],
    )
    y = vae.decode(latents(16, 192)).sample
    assert seen == [torch.bfloat16]
    assert y.dtype == torch.float32
    reference = tiny().vae.decode(latents(16, 192)).sample
    assert float((y - reference).abs().mean()) < 0.02
    assert not torch.equal(y, reference), "bf16 leaves a trace"


def test_slicing_and_tiling_switches(vae, original):
    vae.enable_slicing()
    x = picture(64, 96, batch=2)
    torch.testing.assert_close(
        vae.encode(x).latent_dist.mode(),
        original.encode(x).latent_dist.mode(),
        atol=1e-4,
        rtol=1e-4,
    )
    vae.disable_slicing()
    whole = vae.decode(latents(192, 256, batch=2)).sample
    vae.release_memory()
    vae.enable_tiling(128, 128, 64, 64)
    tiled = vae.decode(latents(192, 256, batch=2)).sample
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert float((tiled - whole).square().mean()) < 1e-3
    assert vae.memory()["engines"] == 1, "128x128 tiles are the profiles engine's"
    small = vae.decode(latents(64, 96)).sample
    vae.disable_tiling()
    torch.testing.assert_close(vae.decode(latents(64, 96)).sample, small, rtol=0, atol=0)
    torch.testing.assert_close(vae.decode(latents(192, 256, batch=2)).sample, whole, rtol=0, atol=0)


def test_tiles_given_by_their_sides_alone_overlap(vae):
    """diffusers keeps the stride of its larger default tiles, and so leaves seams or gaps."""
    whole = vae.decode(latents(192, 256)).sample
    vae.enable_tiling(128, 128)
    assert (vae.tile_sample_stride_height, vae.tile_sample_stride_width) == (96, 96)
    tiled = vae.decode(latents(192, 256)).sample
    vae.enable_tiling(128, 128, 128, 128)
    seams = vae.decode(latents(192, 256)).sample
    assert _mse(tiled, whole) < 0.5 * _mse(seams, whole)
    vae.enable_tiling(1024, 1024)
    assert (vae.tile_sample_stride_height, vae.tile_sample_stride_width) == (896, 896)


def _mse(a, b):
    return float((a - b).square().mean())


@pytest.mark.parametrize(
    "given", [(256, 256, 512, 64), (256, 256, 64, 257), (4, 256, 1, 64), (0, 256), (256, 256, -8)]
)
def test_tiles_that_leave_gaps_are_refused(vae, given):
    with pytest.raises(UsageError, match="expected a side of 8 or more, and a stride from 1"):
        vae.enable_tiling(*given)
    assert not vae.use_tiling


@pytest.mark.parametrize("given", [(256.0, 256.0), ("256",), (256, 256, 64.5), (None, [256])])
def test_tiles_that_are_no_numbers_of_pixels_are_refused(vae, given):
    with pytest.raises(UsageError, match="expected whole numbers"):
        vae.enable_tiling(*given)
    assert not vae.use_tiling
    vae.enable_tiling(*np.array([256, 256]))


def test_attributes_set_one_by_one_are_looked_at_too(vae):
    vae.enable_tiling()
    vae.tile_sample_min_width = 64
    with pytest.raises(UsageError, match="tiles of 64 pixels every 896"):
        vae.decode(latents(192, 256))


def test_saving_writes_the_vae_that_diffusers_knows(vae, original, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderKLQwenImage"
    plain = AutoencoderKLQwenImage.from_pretrained(tmp_path / "vae")
    for name, value in original.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=0, atol=0)


def test_from_pretrained_takes_such_a_folder_and_an_engine_folder(vae, engine_dir, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    again = TrtVae.from_pretrained(
        tmp_path,
        subfolder="vae",
        engine_dir=engine_dir,
        backend="onnxruntime",
        torch_dtype=torch.float16,
        fallback="raise",
    )
    assert again.dtype == torch.float16
    torch.testing.assert_close(
        again.decode(latents(64, 96)).sample, vae.decode(latents(64, 96)).sample, rtol=0, atol=0
    )


def test_from_pretrained_hands_everything_on(vae, tmp_path, monkeypatch):
    import inspect

    from qvae_trt.runtime import vae as module

    options = inspect.signature(load_vae).parameters.keys() - {"model", "dtype"}
    given: dict[str, object] = {}

    def loaded(engine_dir="engines", **options):
        given.update(engine_dir=engine_dir, **options)

    loaded.__signature__ = inspect.signature(load_vae)
    monkeypatch.setattr(module, "load_vae", loaded)
    TrtVae.from_pretrained("folder", low_cpu_mem_usage=True, **{name: name for name in options})
    assert given == {**{name: name for name in options}, "model": "folder", "dtype": None}


def test_the_public_name_is_this_one(engine_dir):
    vae = qvae_trt.load_vae(str(engine_dir), model="bundled:tiny", fallback="raise", backend="auto")
    assert isinstance(vae, qvae_trt.TrtVae)


WRONG = {
    "no GPU": ({"device": "cuda:99"}, "device is 'cuda:99', where no tensor can be"),
    "no device": ({"device": "gpu"}, "device is 'gpu', where no tensor can be"),
    "a list": ({"device": ["cpu"]}, "where no tensor can be"),
    "a dtype by name": ({"dtype": "float16"}, "dtype is 'float16', expected a floating one"),
    "whole numbers": ({"dtype": torch.int8}, "dtype is torch.int8, expected a floating one"),
    "no backend": ({"backend": None}, "the backend is None, expected a name"),
    "a number": ({"engine_dir": 7}, "the engine folder is 7, expected a path"),
    "bytes": ({"engine_dir": b"engines"}, "expected a path"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_in_words(engine_dir, name):
    options, said = WRONG[name]
    options = {"engine_dir": engine_dir, "backend": "onnxruntime", **options}
    with pytest.raises(UsageError, match=said):
        load_vae(options.pop("engine_dir"), model=tiny(), **options)


@pytest.mark.parametrize("mode", ["static", "profiles"])
def test_the_folder_of_one_mode_is_refused(engine_dir, mode):
    """A command to build would build into static/static."""
    with pytest.raises(UsageError, match="expected the folder above") as caught:
        load_vae(engine_dir / mode, model=tiny(), backend="onnxruntime")
    assert str(engine_dir) in caught.value.fix


def test_no_folder_is_no_engines(original):
    vae = load_vae(None, model=tiny(), backend="onnxruntime", fallback="silent")
    expected = original.decode(latents(64, 96)).sample
    torch.testing.assert_close(vae.decode(latents(64, 96)).sample, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, (64,), (64, 96.0), (64, -96), ("64", "96"), None])
def test_a_size_to_warm_up_that_is_none_is_refused(vae, size):
    with pytest.raises(UsageError, match=r"expected \(height, width\)"):
        vae.warm_up(size)


def test_other_arguments_of_methods_are_refused_in_words(vae):
    with pytest.raises(UsageError, match="the part is 'vae', expected one of encoder, decoder"):
        vae.warm_up((64, 96), parts=("vae",))
    with pytest.raises(UsageError, match="the part is 'vae'"):
        vae.choice("vae", STATIC)
    with pytest.raises(UsageError, match=r"expected a qvae_trt\.Resolution"):
        vae.choice("decoder", (64, 96))
    vae.warm_up(STATIC, parts=("decoder",))
    assert vae.memory()["engines"] == 1


def test_a_wrong_word_is_refused_before_anything_is_read(engine_dir):
    with pytest.raises(UsageError, match="fallback is 'ignore'"):
        load_vae(engine_dir, model="no such model", fallback="ignore")
    with pytest.raises(UsageError, match="backend 'cuda'"):
        load_vae(engine_dir, model=tiny(), backend="cuda")


# --- engines come and go
# ----------------------------------------------------------------------------


def test_an_engine_built_later_is_found(engine_dir, tmp_path, original):
    vae = load_vae(tmp_path, model=tiny(), backend="onnxruntime")
    z = latents(64, 96)
    with pytest.warns(FallbackWarning, match="no file"):
        vae.decode(z)
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    torch.testing.assert_close(vae.decode(z).sample, original.decode(z).sample, atol=1e-4, rtol=0)
    assert vae.memory()["engines"] == 1


def test_a_better_engine_built_later_takes_over(engine_dir, tmp_path):
    shutil.copytree(engine_dir / "profiles", tmp_path / "profiles")
    vae = load_vae(tmp_path, model=tiny(), backend="onnxruntime", fallback="raise")
    served = []
    for _ in range(2):
        vae.decode(latents(64, 96))
        served.append(vae.choice("decoder", STATIC).engine)
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    served.append(vae.choice("decoder", STATIC).engine)
    vae.decode(latents(64, 96))
    shutil.rmtree(tmp_path / "static")
    served.append(vae.choice("decoder", STATIC).engine)
    assert served == ["profiles", "profiles", "static", "profiles"]


def test_a_relative_folder_is_found_after_the_process_went_elsewhere(
    engine_dir, tmp_path, monkeypatch
):
    shutil.copytree(engine_dir / "static", tmp_path / "engines" / "static")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    vae = load_vae("engines", model=tiny(), backend="onnxruntime", fallback="raise")
    monkeypatch.chdir(tmp_path / "elsewhere")
    vae.decode(latents(64, 96))
    with pytest.raises(EngineError) as caught:
        vae.decode(latents(64, 64))
    assert f"--engine-dir {tmp_path / 'engines'}" in str(caught.value)


def test_a_relative_folder_where_there_is_no_current_one_is_refused(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="the current folder is gone"):
        load_vae("engines", model=tiny(), backend="onnxruntime")
    monkeypatch.chdir(tmp_path)


def test_a_memory_budget_holds(engine_dir):
    static, wide = (
        engine_dir / "static/96x64/vae_decoder.onnx",
        engine_dir / "profiles/vae_decoder_multi_profile.onnx",
    )
    budget = max(static.stat().st_size, wide.stat().st_size) + 1000
    vae = load_vae(
        engine_dir,
        model=tiny(),
        backend="onnxruntime",
        fallback="raise",
        memory_budget_bytes=budget,
    )
    for size in ((64, 96), (128, 160), (64, 96)):
        vae.decode(latents(*size))
        assert vae.memory()["engines"] == 1
        assert vae.memory()["engine_bytes"] <= budget


def test_threads_get_what_one_thread_gets(engine_dir):
    """Two sizes and both parts, with evictions between them."""
    vae = load_vae(
        engine_dir,
        model=tiny(),
        backend="onnxruntime",
        fallback="raise",
        memory_budget_bytes=3_000_000,
    )
    inputs = [
        (vae.encode, picture(64, 96, seed=1)),
        (vae.encode, picture(64, 64, seed=2)),
        (vae.decode, latents(64, 96)),
        (vae.decode, latents(32, 48)),
    ]

    def result(call, x) -> torch.Tensor:
        found = call(x, return_dict=False)[0]
        return found if isinstance(found, torch.Tensor) else found.parameters

    expected = [result(*pair) for pair in inputs]
    wrong: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for i in range(8):
                index = (start + i) % len(inputs)
                torch.testing.assert_close(result(*inputs[index]), expected[index], rtol=0, atol=0)
        except BaseException as error:  # noqa: BLE001  reported below, in the test's thread
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_raise_names_every_candidate(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="raise")
    with pytest.raises(EngineError) as caught:
        vae.decode(latents(16, 192))
    text = str(caught.value)
    for expected in (
        "192x16",
        "no file",
        "vae_decoder.onnx",
        "profile 0",
        "qvae build --mode static",
        f"--model {tiny().source}",
        "--backend onnxruntime",
    ):
        assert expected in text, text


def test_the_folder_of_an_unknown_user_is_refused():
    with pytest.raises(UsageError, match="no such user"):
        load_vae("~no-such-user/engines", model=tiny(), backend="onnxruntime")


def test_a_warning_names_the_line_of_the_caller(tmp_path):
    vae = load_vae(tmp_path, model=tiny(), backend="onnxruntime")
    with pytest.warns(FallbackWarning) as caught:
        vae.decode(latents(64, 96))
    assert caught[0].filename == __file__


@pytest.mark.parametrize("budget", ["2GB", -5, 1.5])
def test_a_budget_that_is_no_number_of_bytes_is_refused(tmp_path, budget):
    with pytest.raises(UsageError, match="expected a number of bytes"):
        load_vae(tmp_path, model=tiny(), memory_budget_bytes=budget)


def test_a_vae_of_diffusers_is_not_a_model(tmp_path):
    with pytest.raises(UsageError, match="the model is a AutoencoderKLQwenImage") as caught:
        load_vae(tmp_path, model=tiny().vae)
    assert "save_pretrained" in caught.value.fix


def test_no_engine_is_advised_where_none_could_serve(engine_dir):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="raise")
    with pytest.raises(EngineError, match="requires a gradient") as caught:
        vae.decode(latents(64, 96).requires_grad_())
    assert caught.value.fix is None


def test_choice_leaves_out_what_would_be_refused(engine_dir, tmp_path):
    shutil.copytree(engine_dir, tmp_path / "engines")
    size = Resolution(64, 96)
    vae = load_vae(tmp_path / "engines", model=tiny(), backend="onnxruntime")
    assert vae.choice("decoder", size).engine == "static"
    (tmp_path / "engines/static/96x64/vae_decoder.onnx.json").write_text("{}")
    found = vae.choice("decoder", size)
    assert found.engine == "profiles"
    assert "malformed sidecar" in found.explain()


def test_an_engine_that_cannot_be_looked_at_is_not_chosen(engine_dir, monkeypatch):
    vae = load_vae(engine_dir, model=tiny(), backend="onnxruntime", fallback="silent")
    is_file = Path.is_file

    def refuse(path: Path) -> bool:
        if "static" in path.parts:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    found = vae.choice("decoder", Resolution(64, 96))
    assert found.engine == "profiles"
    assert "cannot be looked at: Permission denied" in found.explain()


def test_a_warning_names_the_line_of_a_call_of_the_module(tmp_path):
    vae = load_vae(tmp_path, model=tiny(), backend="onnxruntime")
    with pytest.warns(FallbackWarning) as caught:
        vae(picture(64, 96))
    assert {warning.filename for warning in caught} == {__file__}


def test_tiles_that_are_refused_change_nothing(vae):
    with pytest.raises(UsageError, match="every 300"):
        vae.enable_tiling(tile_sample_min_height=256, tile_sample_stride_height=300)
    assert not vae.use_tiling
    vae.enable_tiling()
    assert vae.tile_sample_min_height == 1024
    vae.disable_tiling()


def test_the_model_may_be_a_path(vae, tmp_path):
    vae.save_pretrained(tmp_path / "vae")
    again = load_vae(tmp_path, model=tmp_path / "vae", fallback="silent", backend="onnxruntime")
    assert again.z_dim == vae.z_dim
