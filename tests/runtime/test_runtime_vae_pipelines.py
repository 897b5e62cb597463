"""diffusers' own Qwen-Image pipelines, with its VAE and with ours: the same pictures."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import ort_engines
import pytest
import tiny_pipelines as small
import torch
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
    pipeline_qwenimage_layered,
)
from PIL import Image

from qvae_trt import store
from qvae_trt.errors import DeviceMemoryError, EngineError, ExecutionError, StaleEngineError
from qvae_trt.model import Model, random_vae
from qvae_trt.runtime.engine import Engine
from qvae_trt.runtime.fallback import FallbackWarning
from qvae_trt.runtime.vae import TrtVae, load_vae

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HEIGHT = 96, 64


@pytest.fixture
def vae(engine_dir) -> TrtVae:
    """Raises where an engine does not serve: a picture that comes is an engine's."""
    return load_vae(engine_dir, model=ort_engines.tiny(), backend="onnxruntime", fallback="raise")


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """The editing pipelines scale what they edit to a million pixels; here to 96x64."""
    for module, result in (
        (pipeline_qwenimage_edit, (WIDTH, HEIGHT, None)),
        (pipeline_qwenimage_edit_inpaint, (WIDTH, HEIGHT, None)),
        (pipeline_qwenimage_edit_plus, (WIDTH, HEIGHT)),
        (pipeline_qwenimage_layered, (WIDTH, HEIGHT)),
    ):
        monkeypatch.setattr(module, "calculate_dimensions", lambda *_, result=result: result)


def photo(mode: str = "RGB") -> Image.Image:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    channels = [rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256, 255 - rows]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8), "RGBA").convert(mode)


def mask() -> Image.Image:
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    picture[16:48, 20:70] = 255
    return Image.fromarray(picture)


@dataclass(frozen=True)
class Case:
    """A pipeline, what it takes besides the usual, and whether it encodes."""

    name: str
    inputs: Callable[[], dict[str, Any]] = dict
    components: Callable[[], dict[str, Any]] = dict
    encodes: bool = True


SIZE = {"height": HEIGHT, "width": WIDTH}
CASES = {
    case.name: case
    for case in (
        Case("QwenImage", lambda: SIZE, encodes=False),
        Case("QwenImageEdit", lambda: {"image": photo(), **SIZE}, lambda: {"processor": None}),
        Case(
            "QwenImageEditPlus",
            lambda: {"image": [photo(), photo().rotate(180)], **SIZE},
            lambda: {"processor": None},
        ),
        Case("QwenImageImg2Img", lambda: {"image": photo(), "strength": 0.8, **SIZE}),
        Case(
            "QwenImageInpaint",
            lambda: {"image": photo(), "mask_image": mask(), "strength": 0.8, **SIZE},
        ),
        Case(
            "QwenImageEditInpaint",
            lambda: {"image": photo(), "mask_image": mask(), "strength": 0.8, **SIZE},
            lambda: {"processor": None},
        ),
        Case(
            "QwenImageControlNet",
            lambda: {"control_image": photo(), **SIZE},
            lambda: {"controlnet": small.controlnet()},
        ),
        Case(
            "QwenImageControlNetInpaint",
            lambda: {"control_image": photo(), "control_mask": mask(), **SIZE},
            lambda: {"controlnet": small.controlnet(inpaint=True)},
        ),
    )
}


def pipeline(case: Case, vae: Any) -> Any:
    pipe = getattr(diffusers, f"{case.name}Pipeline")(
        scheduler=small.scheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=small.transformer(),
        **case.components(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, case: Case, *, dtype: torch.dtype = torch.float32, **more: Any) -> np.ndarray:
    # ControlNet-inpaint samples from the global generator; the others from the one given.
    torch.manual_seed(11)
    return pipe(
        **small.prompt(dtype=dtype),
        **case.inputs(),
        num_inference_steps=3,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
        **more,
    ).images


@pytest.mark.parametrize("name", CASES)
def test_the_pictures_are_those_of_the_untouched_pipeline(vae, name):
    case = CASES[name]
    original = ort_engines.tiny().vae
    pipe = pipeline(case, original)
    expected = draw(pipe, case)
    assert expected.shape == (1, HEIGHT, WIDTH, 3)
    assert expected.std() > 0.01, "a picture, not a plain colour"
    pipe.vae = vae
    ours = draw(pipe, case)
    np.testing.assert_allclose(ours, expected, atol=2e-3, rtol=0)
    assert vae.memory()["engines"] == (2 if case.encodes else 1)
    np.testing.assert_allclose(draw(pipe, case), ours, atol=0, rtol=0)


def pipeline_21(vae: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    pipe = diffusers.QwenImage21Pipeline(
        scheduler=small.scheduler(),
        vae=vae,
        text_encoder=None,
        processor=small.Processor21(),
        transformer=small.transformer_21(),
    )
    pipe.set_progress_bar_config(disable=True)
    seen = small.prompt_of_picture(HEIGHT * WIDTH // 32**2)
    monkeypatch.setattr(pipe, "_get_qwen_prompt_embeds", lambda *_: seen)
    return pipe


@pytest.mark.parametrize("edits", [False, True], ids=["from a prompt", "from a picture"])
def test_the_pictures_of_2_1_are_those_of_its_untouched_pipeline(
    tmp_path_factory, monkeypatch, edits
):
    model = ort_engines.tiny_21()
    folder = ort_engines.shared_21(tmp_path_factory)
    vae = load_vae(folder, model=model, backend="onnxruntime", fallback="raise")
    given: dict[str, Any] = {"image": photo("RGBA"), "prompt": "a cat", "output_resolution": 78}
    if not edits:
        given = {**small.prompt(), **SIZE}
    pictures = []
    for one in (model.vae, vae):
        pipe = pipeline_21(one, monkeypatch)
        run = {"num_inference_steps": 3, "generator": torch.Generator().manual_seed(7)}
        pictures.append(pipe(**given, **run, output_type="np").images)
    expected, ours = pictures
    assert expected.shape == (1, HEIGHT, WIDTH, 4)
    assert expected.std() > 0.01
    np.testing.assert_allclose(ours, expected, atol=2e-3, rtol=0)
    assert vae.memory()["engines"] == 1 + edits


def _cut(engine: Path) -> None:
    os.truncate(engine, 1000)


def _remove(engine: Path) -> None:
    engine.unlink()


def _other_gpu(engine: Path) -> None:
    path = store.sidecar_path(engine)
    path.write_text(path.read_text().replace('"gpu": "cpu"', '"gpu": "NVIDIA H100"'))


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (_cut, StaleEngineError),
        (_remove, EngineError),
        (_other_gpu, StaleEngineError),
        (ExecutionError("the run failed"), ExecutionError),
        (DeviceMemoryError("no memory for the run"), DeviceMemoryError),
    ],
    ids=["truncated", "missing", "of another GPU", "fails while running", "out of memory"],
)
def test_a_faulty_engine_in_a_pipeline(engine_dir, tmp_path, monkeypatch, fault, error):
    """Both engines at fault: the picture of the untouched pipeline, or the named exception."""
    case = CASES["QwenImageEdit"]
    pipe = pipeline(case, ort_engines.tiny().vae)
    expected = draw(pipe, case)
    shutil.copytree(engine_dir / "static", tmp_path / "static")
    if isinstance(fault, Exception):

        def fail(*_args: object, **_kwargs: object) -> None:
            raise fault

        monkeypatch.setattr(Engine, "run", fail)
    else:
        for engine in (tmp_path / "static").rglob("*.onnx"):
            fault(engine)
    options = {"model": ort_engines.tiny(), "backend": "onnxruntime"}
    pipe.vae = load_vae(tmp_path, fallback="warn", **options)
    with pytest.warns(FallbackWarning) as warned:
        ours = draw(pipe, case)
    np.testing.assert_allclose(ours, expected, atol=2e-3, rtol=0)
    assert len([w for w in warned if issubclass(w.category, FallbackWarning)]) == 2
    pipe.vae = load_vae(tmp_path, fallback="raise", **options)
    with pytest.raises(error):
        draw(pipe, case)


def test_pil_pictures_and_several_a_prompt(vae):
    case = CASES["QwenImage"]
    pipe = pipeline(case, ort_engines.tiny().vae)

    def images() -> list[Image.Image]:
        return pipe(
            **small.prompt(),
            **SIZE,
            num_inference_steps=2,
            num_images_per_prompt=3,
            generator=torch.Generator().manual_seed(0),
        ).images

    expected = images()
    pipe.vae = vae
    for ours, theirs in zip(images(), expected, strict=True):
        difference = np.asarray(ours, np.int16) - np.asarray(theirs, np.int16)
        assert np.abs(difference).max() <= 1


def test_a_bf16_pipeline(vae):
    """Prompt embeddings in bf16 make the pictures to encode bf16, whatever engines take."""
    case = CASES["QwenImageEdit"]
    original = copy.deepcopy(ort_engines.tiny().vae).to(torch.bfloat16)
    pictures = []
    for one in (original, vae.to(torch.bfloat16)):
        pipe = pipeline(case, one)
        pipe.transformer = copy.deepcopy(small.transformer()).to(torch.bfloat16)
        pictures.append(draw(pipe, case, dtype=torch.bfloat16))
    assert np.abs(pictures[1] - pictures[0]).mean() < 0.02
    assert vae.memory()["engines"] == 2


def test_prompts_through_a_text_encoder(vae, tmp_path):
    components = {
        "scheduler": small.scheduler(),
        "text_encoder": small.text_encoder(),
        "tokenizer": small.tokenizer(tmp_path),
        "transformer": small.transformer(),
    }
    pictures = []
    for one in (ort_engines.tiny().vae, vae):
        pipe = diffusers.QwenImagePipeline(vae=one, **components)
        pipe.set_progress_bar_config(disable=True)
        pictures.append(
            pipe(
                "a cat on a mat",
                negative_prompt="a dog",
                true_cfg_scale=2.0,
                **SIZE,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
        )
    np.testing.assert_allclose(*pictures, atol=2e-3, rtol=0)


# --- Layered: RGBA, and layers as a batch
# -----------------------------------------------------------


@pytest.fixture(scope="module")
def rgba() -> Model:
    config = dict(ort_engines.tiny().vae.config)
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    return Model(random_vae({**config, "input_channels": 4}), "random", "4" * 64)


def layered_pictures(vae: Any) -> list[np.ndarray]:
    pipe = diffusers.QwenImageLayeredPipeline(
        scheduler=small.scheduler(),
        vae=vae,
        text_encoder=small.text_encoder(),
        tokenizer=None,
        processor=None,
        transformer=small.transformer(layered=True),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        image=photo("RGBA"),
        prompt="given as embeddings",
        **small.prompt(),
        layers=3,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images


def test_layered_pictures(rgba, tmp_path):
    """Four channels, three layers: by engines, and by PyTorch where there are none."""
    expected = layered_pictures(rgba.vae)
    assert expected[0].shape == (3, HEIGHT, WIDTH, 4)
    engines = ort_engines.build(tmp_path / "rgba", rgba, modes=("static",))
    vae = load_vae(engines, model=rgba, backend="onnxruntime", fallback="raise")
    np.testing.assert_allclose(layered_pictures(vae)[0], expected[0], atol=2e-3, rtol=0)
    assert vae.memory()["engines"] == 2
    vae = load_vae(tmp_path / "none", model=rgba, backend="onnxruntime", fallback="warn")
    with pytest.warns(FallbackWarning, match="PyTorch instead"):
        found = layered_pictures(vae)
    np.testing.assert_allclose(found[0], expected[0], atol=2e-3, rtol=0)


# --- the pipeline around it
# -------------------------------------------------------------------------


def test_to_reaches_it(vae):
    pipe = pipeline(CASES["QwenImage"], vae)
    pipe.transformer = None
    pipe.to(torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    pipe.to(torch.float32)
    assert vae.dtype == torch.float32
    assert pipe.device == torch.device("cpu")
    assert pipe.vae_scale_factor == 8


def test_a_pipeline_is_saved_and_loaded_with_it(vae, engine_dir, tmp_path):
    """`vae/` is diffusers' own VAE, so that the folder also serves who has no engines."""
    case = CASES["QwenImage"]
    pipe = pipeline(case, vae)
    expected = draw(pipe, case)
    pipe.save_pretrained(tmp_path / "pipe")
    plain = diffusers.AutoencoderKLQwenImage.from_pretrained(tmp_path / "pipe" / "vae")
    load = diffusers.QwenImagePipeline.from_pretrained
    nothing = {"text_encoder": None, "tokenizer": None}
    for one in (vae, plain):
        again = load(tmp_path / "pipe", vae=one, **nothing)
        again.set_progress_bar_config(disable=True)
        assert again.vae is one
        np.testing.assert_allclose(draw(again, case), expected, atol=2e-3, rtol=0)
    script = (
        "import sys, diffusers; pipe = diffusers.QwenImagePipeline.from_pretrained(sys.argv[1],"
        " text_encoder=None, tokenizer=None);"
        " print(type(pipe.vae).__name__, 'qvae_trt' in sys.modules)"
    )
    command = [sys.executable, "-c", script, tmp_path / "pipe"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    assert loaded.stdout.split() == ["AutoencoderKLQwenImage", "False"], loaded.stderr


def test_it_passes_for_the_vae_it_stands_for(vae):
    assert isinstance(vae, TrtVae)
    assert isinstance(vae, diffusers.AutoencoderKLQwenImage)
    assert type(vae) is TrtVae
    assert repr(vae).startswith("TrtVae(")
    assert not vae.training


@pytest.mark.parametrize("name", ["QwenImageImg2Img", "QwenImageInpaint", "QwenImageControlNet"])
def test_from_pipe_hands_it_on(vae, name):
    """diffusers asks whether the type of each component is the one expected."""
    case = CASES[name]
    pipe = pipeline(CASES["QwenImage"], vae)
    other = getattr(diffusers, f"{name}Pipeline").from_pipe(pipe, **case.components())
    assert other.vae is vae
    other.set_progress_bar_config(disable=True)
    draw(other, case)
    auto = diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    assert auto.vae is vae
    back = diffusers.QwenImagePipeline.from_pipe(other)
    assert back.vae is vae


def test_its_class_is_its_own_all_the_same():
    assert TrtVae == TrtVae
    assert TrtVae == diffusers.AutoencoderKLQwenImage
    assert diffusers.AutoencoderKLQwenImage == TrtVae
    assert TrtVae != diffusers.AutoencoderKL
    assert {TrtVae: 1, diffusers.AutoencoderKLQwenImage: 2}[TrtVae] == 1


def test_offload_hooks_are_called_by_encode_and_decode(vae):
    """accelerate puts its hook on `forward`, which pipelines never call on a VAE."""
    from accelerate import cpu_offload_with_hook

    hooked, hook = cpu_offload_with_hook(vae, execution_device="cpu")
    assert hooked is vae
    calls: list[str] = []
    before = vae._hf_hook.pre_forward
    vae._hf_hook.pre_forward = lambda module, *args: (calls.append("in"), before(module, *args))[1]
    dist = vae.encode(torch.zeros(1, 3, 1, HEIGHT, WIDTH)).latent_dist
    vae.decode(dist.mode())
    assert calls == ["in", "in"]
    hook.offload()
    assert vae.device == torch.device("cpu")
