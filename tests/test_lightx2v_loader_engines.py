"""LightX2V's own loader, by its rules, on engines that run: every picture is PyTorch's.

The rules were read in its `vae_trt.py` and are written anew here, with ONNX Runtime in TensorRT's
place. What a TensorRT engine without a check does is done here too: it reads the memory that it is
given as a picture of its own size.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import ort_engines
import pytest
import torch
from ort_engines import tiny

from qvae_trt import store
from qvae_trt.export import export_onnx
from qvae_trt.folding import fold
from qvae_trt.lightx2v_folder import make_folder
from qvae_trt.lightx2v_loader import editing_sizes
from qvae_trt.lowerings import PYTORCH, choose_lowering
from qvae_trt.profiles import (
    PARTS,
    Part,
    Profile,
    Resolution,
    engine_path,
    load_profiles,
    load_static_sizes,
)

#: Its own tables, by (height, width).
FOLDERS = {
    (928, 1664): "16_9",
    (1664, 928): "9_16",
    (1328, 1328): "1_1",
    (1104, 1472): "4_3",
    (1472, 1104): "3_4",
    (1584, 1056): "3_2",
    (1056, 1584): "2_3",
}
OPTS = (
    (512, 512),
    (1024, 1024),
    (480, 848),
    (720, 1280),
    (1088, 1920),
    (1280, 720),
    (1920, 1088),
    (768, 1024),
    (1088, 1620),
)
WIDE, TALL = Resolution(1056, 1584), Resolution(1584, 1056)


class Loader:
    """What it does with a picture (1, 3, 1, H, W) or latents (1, 16, 1, h, w); None is PyTorch's.

    Sizes are those that it is told, in pixels.
    """

    def __init__(self, folder: Path, *, multi_profile: bool) -> None:
        self.folder = folder
        self.multi_profile = multi_profile
        self.shape_set: tuple[int, ...] | None = None  # of the one context with profiles

    def run(self, part: Part, x: torch.Tensor, height: int, width: int) -> torch.Tensor | None:
        if self.multi_profile:
            engine = self.folder / f"vae_{part}_multi_profile.onnx"
            if not engine.exists():
                return None
            far = [abs(height - h) + abs(width - w) for h, w in OPTS]
            profile = store.read_sidecar(engine).key.profiles[far.index(min(far))]
            sides = [side * (1 if part == "encoder" else 8) for side in x.shape[3:]]
            if profile.holds(Resolution(*sides)):
                self.shape_set = tuple(x.shape)
            # Else TensorRT answers False, which is not looked at: the shape before stays.
            shape = self.shape_set
        else:
            name = FOLDERS.get((height, width))
            engine = self.folder / (name or "none") / f"vae_{part}.onnx"
            if not engine.exists():
                return None
            # Its one size, whatever x is.
            shape = ort_engines.shape(part, store.read_sidecar(engine).key.profiles[0].opt)
        assert shape is not None, "TensorRT would run without a shape"
        memory = x.to(torch.float16).contiguous().numpy().tobytes()
        given = np.frombuffer(memory, np.float16, count=int(np.prod(shape))).reshape(shape)
        session = session_of(engine)
        (found,) = session.run(None, {session.get_inputs()[0].name: given})
        return torch.from_numpy(found.view(np.float16).copy())


@lru_cache(maxsize=4)
def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class Built:
    """Engines of the bundled VAE in fp16, each built when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._graphs: dict[Part, tuple[Path, str]] = {}

    def have(self, part: Part, *profiles: Profile) -> None:
        mode = "static" if len(profiles) == 1 else "profiles"
        if engine_path(self.folder, part, mode, ".onnx", profiles[0].opt).exists():
            return
        if part not in self._graphs:
            lowering = choose_lowering("onnxruntime", "1", "fp16")
            path = self.folder / f"{part}.graph"
            made = export_onnx(tiny(), part, path, precision="fp16", lowering=lowering)
            self._graphs[part] = path, made.sha256
        path, sha256 = self._graphs[part]
        ort_engines.write(
            self.folder, part, mode, *profiles,
            onnx=path, onnx_sha256=sha256, precision="fp16", model=tiny(),
        )  # fmt: skip

    def loader(self, *, multi_profile: bool) -> Loader:
        out = self.folder / "for lightx2v"
        make_folder(self.folder, out, backend="onnxruntime", copy=False)
        return Loader(
            out / ("profiles" if multi_profile else "static"), multi_profile=multi_profile
        )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    return Built(tmp_path_factory.mktemp("lightx2v"))


@lru_cache(maxsize=1)
def reference():
    return fold(tiny().vae, lowering=PYTORCH)


def given(part: Part, size: Resolution) -> torch.Tensor:
    x = torch.randn(
        ort_engines.shape(part, size), generator=torch.Generator().manual_seed(size.pixels)
    )
    return x.clamp(-1, 1) if part == "encoder" else x


def error(part: Part, size: Resolution, found: torch.Tensor) -> float:
    """Relative L2 against PyTorch in float32."""
    with torch.no_grad():
        x = given(part, size)
        wanted = reference().encode(x) if part == "encoder" else reference().decode(x)
    assert found.shape == wanted.shape
    return float((found.float() - wanted).norm() / wanted.norm())


def is_right(built: Built, part: Part, size: Resolution, *, multi_profile: bool) -> None:
    loader = built.loader(multi_profile=multi_profile)
    found = loader.run(part, given(part, size), size.height, size.width)
    assert found is not None
    assert error(part, size, found) < 1e-2


def test_both_sizes_that_its_names_swap_are_right(built):
    for size in (WIDE, TALL):
        built.have("decoder", Profile.fixed(size))
        is_right(built, "decoder", size, multi_profile=False)


def test_an_engine_of_the_turned_size_would_be_scrambled_without_a_word(built, tmp_path):
    """What its names promise, and what was there before: 3_2 for the picture that is 1584 wide."""
    built.have("decoder", Profile.fixed(WIDE))
    (tmp_path / "2_3").symlink_to(built.folder / "static" / str(TALL))
    built.have("decoder", Profile.fixed(TALL))
    x = given("decoder", WIDE)
    found = Loader(tmp_path, multi_profile=False).run("decoder", x, WIDE.height, WIDE.width)
    assert found.shape[3:] == (1584, 1056)
    turned = found.reshape(1, 3, 1, 1056, 1584)
    assert error("decoder", WIDE, turned) > 0.5


def test_a_size_that_a_narrow_profile_did_not_hold_is_right(built):
    """1376x768 is the nearest to 1280x720, whose range ended at 1280x880."""
    built.have("decoder", *load_profiles())
    is_right(built, "decoder", Resolution(768, 1376), multi_profile=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", load_static_sizes().values(), ids=str)
def test_every_static_size_is_right(built, size, part):
    built.have(part, Profile.fixed(size))
    is_right(built, part, size, multi_profile=False)


#: 40 of them, from the tallest to the widest.
EDITED = editing_sizes()[:: len(editing_sizes()) // 39][:40]


@pytest.mark.slow
@pytest.mark.parametrize("size", EDITED, ids=str)
def test_every_editing_size_is_right(built, size):
    parts = PARTS if size in EDITED[::4] else ("decoder",)
    for part in parts:
        built.have(part, *load_profiles())
        is_right(built, part, size, multi_profile=True)
