"""What LightX2V's own loader picks, and that our ranges hold it: arithmetic over every size."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import lightx2v_vae_trt
import pytest

from qvae_trt.lightx2v_loader import editing_sizes, picked_profiles, static_folders, unheld
from qvae_trt.profiles import (
    Profile,
    Refusal,
    Resolution,
    choose,
    load_profiles,
    load_static_sizes,
)

R = Resolution


@pytest.fixture(scope="module")
def picked() -> tuple[tuple[Resolution, int], ...]:
    return picked_profiles()


def test_every_size_that_can_be_asked_for_is_there(picked):
    sizes = {size for size, _ in picked}
    grid = range(256, 1665, 16)
    assert sizes >= {R(h, w) for h in grid for w in grid}
    assert sizes >= {R(1088, 1920), R(1920, 1088), R(512, 2048), R(2048, 512)}
    # Those of pictures, as editing makes them.
    for ratio, size in ((16 / 9, R(768, 1376)), (3 / 2, R(832, 1248)), (0.25, R(2048, 512))):
        width = (1024 * 1024 * ratio) ** 0.5
        assert R(round(width / ratio / 32) * 32, round(width / 32) * 32) == size
        assert size in editing_sizes()


def test_the_nearest_opt_is_picked_whatever_its_range(picked):
    by_size = {}
    for size, index in picked:
        by_size.setdefault(size, set()).add(index)
    # By hand, of its list: 1328x1328 is 608 from 1024x1024 and 532 from 1620x1088.
    for size, index in ((R(1328, 1328), 8), (R(768, 1376), 3), (R(512, 512), 0)):
        assert by_size[size] == {index}
    # 1184x896 is 272 from 1280x720 and 288 from 1024x1024; 1184x910 is a picture of 1184x896 too.
    assert by_size[R(896, 1184)] == {1, 3}


def test_the_profile_that_it_picks_holds_the_size():
    assert unheld(load_profiles()) == []


def test_our_choice_of_profile_holds_the_size_too(picked):
    profiles = load_profiles()
    for size in {size for size, _ in picked}:
        choice = choose(size, static=Refusal("none", absent=True), profiles=profiles)
        assert choice.engine == "profiles"
        assert profiles[choice.profile_index].holds(size)


def test_a_size_that_is_not_held_is_told():
    profiles = load_profiles()
    narrow = replace(profiles[8], max=R(1648, 1664))
    missed = unheld([*profiles[:8], narrow])
    assert {(size.height, index) for size, index in missed} == {(1664, 8)}
    assert (R(1664, 1664), 8) in missed
    assert {index for _, index in unheld(profiles[:8])} == {8}
    assert unheld([Profile(R(256, 256), R(512, 512), R(2048, 2048))] * 9) == []


def test_no_range_is_wider_than_its_rule_needs(picked):
    for index, profile in enumerate(load_profiles()):
        sizes = [size for size, i in picked if i == index] + [profile.opt]
        heights, widths = [s.height for s in sizes], [s.width for s in sizes]
        assert profile.min == R(min(heights), min(widths))
        assert profile.max == R(max(heights), max(widths))


def test_its_folders_are_the_seven_sizes_with_the_swap():
    folders = static_folders()
    assert sorted(folders.values()) == sorted(load_static_sizes().values())
    for aspect, size in load_static_sizes().items():
        name = aspect.replace(":", "_")
        expected = {"3_2": "2_3", "2_3": "3_2"}.get(name, name)
        assert folders[expected] == size


def test_our_folders_have_none_of_its_names():
    """So that it opens no engine of ours under a wrong size."""
    ours = {str(size) for size in load_static_sizes().values()}
    assert not ours & set(static_folders())
    assert all("x" not in name for name in static_folders())


# --- benchmarks/gpu/lightx2v_vae_trt.py, which runs the loader itself on a GPU

STANDS_FOR_ITS_FILE = """
import sys
from types import SimpleNamespace
import torch
from loguru import logger
from lightx2v.utils.envs import GET_DTYPE
from lightx2v_platform.base.global_var import AI_DEVICE
from qvae_trt import from_lightx2v_config

class TensorRTVAE:
    def __init__(self, config):
        assert GET_DTYPE() == torch.float16 and AI_DEVICE == "cpu"
        logger.info(f"Loading from {config['trt_vae_config']['trt_engine_path']}")
        self.vae = from_lightx2v_config(
            {**config, "vae_path": "bundled:tiny"}, fallback="silent", device="cpu",
            backend="onnxruntime", dtype=torch.float32,
        )
        self.vae_latents_mean = self.vae.vae.config.latents_mean
        self.vae_latents_std = self.vae.vae.config.latents_std

    def encode_vae_image(self, image):
        return self.vae.encode_vae_image(image)

    def decode(self, latents, info):
        return self.vae.decode(latents, info) * SCALE
"""


@pytest.mark.parametrize("scale", [1, 1.05])
def test_the_script_for_its_file_tells_right_from_wrong(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(lightx2v_vae_trt, "DEVICE", "cpu")
    for name in ("STATIC", "PROFILES"):
        monkeypatch.setattr(lightx2v_vae_trt, name, ("96x64",))
    file, out = tmp_path / "vae_trt.py", tmp_path / "out" / "found.json"
    file.write_text(STANDS_FOR_ITS_FILE.replace("SCALE", str(scale)))
    before = dict(sys.modules)
    command = [str(file), str(tmp_path), "--model", "bundled:tiny", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["lightx2v_vae_trt.py", *command])
    with pytest.raises(SystemExit) as ended:
        lightx2v_vae_trt.main()
    told = json.loads(out.read_text())
    assert [row["ok"] for row in told["rows"]] == [scale == 1] * 2
    assert ended.value.code == (0 if scale == 1 else 1)
    assert told["rows"][0]["log"] == [f"Loading from {tmp_path / 'static'}"]
    assert {name for name in sys.modules if "lightx2v" in name} <= set(before)
