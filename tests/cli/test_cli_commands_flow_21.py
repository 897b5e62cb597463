"""Qwen-Image-2.1 through the command line and the run-time, small, on the CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import ort_engines
import pytest
import torch
from PIL import Image

from qvae_trt import load_vae
from qvae_trt.cli import app as cli
from qvae_trt.errors import EngineError, StaleEngineError, UsageError
from qvae_trt.kinds import QWEN_IMAGE, QWEN_IMAGE_21
from qvae_trt.runtime.lightx2v import from_lightx2v_config

if TYPE_CHECKING:
    from pathlib import Path

TINY = ["--model", "random:tiny-2.1"]


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static pair of 96x64 and a pair of 48x48 to 160x128; read only."""
    return ort_engines.shared_21(tmp_path_factory)


@pytest.fixture
def place(engines: Path) -> list[str]:
    return ["--engine-dir", str(engines), "--backend", "onnxruntime"]


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict:
    """The JSON result of a command."""
    capsys.readouterr()
    assert cli.main([*map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_build_has_the_sizes_of_its_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["build", *TINY, "--dry-run", "--engine-dir", tmp_path, "--backend", "onnxruntime"]
    static = run(capsys, *build, "--mode", "static", "--part", "decoder")["engines"]
    sizes = [engine["profiles"][0]["opt"] for engine in static]
    assert sizes == [str(size) for size in QWEN_IMAGE_21.static_sizes.values()]
    (wide,) = run(capsys, *build, "--mode", "static", "--part", "decoder", "--aspect", "16:9")[
        "engines"
    ]
    assert wide["profiles"][0]["opt"] == "2752x1536"
    (many,) = run(capsys, *build, "--mode", "profiles", "--part", "decoder")["engines"]
    assert [p["opt"] for p in many["profiles"]] == [str(p.opt) for p in QWEN_IMAGE_21.profiles]


def test_a_size_that_it_does_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["build", *TINY, "--engine-dir", tmp_path, "--backend", "onnxruntime"]
    result = run(capsys, *build, "--mode", "static", "--resolution", "128x104", code=1)
    assert {engine["status"] for engine in result["engines"]} == {"failed"}
    assert "multiple of 16" in result["engines"][0]["reason"]
    assert cli.main(["profiles", "match", "128x104", *TINY]) == 2
    assert "Qwen-Image-2.1" in capsys.readouterr().err


def test_its_profiles_are_listed_and_matched(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys, "profiles", "list", *TINY)
    assert {row["size"] for row in listed["static"]} >= {"2048x2048", "2752x1536"}
    match = run(capsys, "profiles", "match", "2528x1696", *TINY)
    assert match["decoder"]["engine"] == "static"
    own = run(capsys, "profiles", "list")
    assert {row["size"] for row in own["static"]} == set(map(str, QWEN_IMAGE.static_sizes.values()))


def test_its_engines_are_verified(place: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "verify", *TINY, *place)["rows"]
    assert {row["status"] for row in rows} == {"passed"}
    assert {row["mode"] for row in rows} == {"static", "profiles"}


def test_a_bench_measures_it(
    place: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--resolution", "96x64", "--part", "decoder", "--service", "--out", tmp_path]
    data = run(capsys, "bench", *TINY, *place, *options)
    assert {cell["path"] for cell in data["cells"] if cell["timing"]} >= {"pytorch", "static"}
    assert (tmp_path / "latency.md").is_file()


@pytest.fixture
def transparent(tmp_path: Path) -> Path:
    rows, columns = np.mgrid[0:41, 0:60]
    planes = [rows * 6, columns * 4, rows + columns, 255 - columns * 4]
    path = tmp_path / "picture.png"
    Image.fromarray(np.stack(planes, -1).astype(np.uint8), "RGBA").save(path)
    return path


def test_pictures_keep_their_alpha(
    place: list[str], transparent: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents, out = tmp_path / "z.safetensors", tmp_path / "out.png"
    encoded = run(capsys, "encode", transparent, "--out", latents, *TINY, *place)
    decoded = run(capsys, "decode", latents, "--out", out, *TINY, *place)
    assert [run["engine"] for run in (*encoded["passes"], *decoded["passes"])] == ["profile 0"] * 2
    with Image.open(out) as picture:
        assert (picture.mode, picture.size) == ("RGBA", (60, 41))
    run(capsys, "roundtrip", transparent, "--out", out, *TINY, *place)
    assert cli.main(["decode", str(latents), "--out", str(out), "--model", "bundled:tiny"]) == 1
    said = capsys.readouterr().err
    assert "found 64 latent channels, expected 16, as Qwen-Image has" in said


def test_engines_of_one_vae_and_weights_of_the_other(
    engines: Path, place: list[str], tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Both are named, whichever way round."""
    other = ort_engines.shared(tmp_path_factory)
    options = {"backend": "onnxruntime", "fallback": "raise"}
    for folder, model in ((engines, ort_engines.tiny()), (other, ort_engines.tiny_21())):
        vae = load_vae(folder, model=model, **options)
        z = torch.zeros(model.shape("decoder", ort_engines.STATIC))
        with pytest.raises(StaleEngineError) as caught:
            vae.decode(z)
        found = next(kind.name for kind in (QWEN_IMAGE, QWEN_IMAGE_21) if kind != model.kind)
        assert f"another VAE: found {found}, expected {model.kind.name}" in caught.value.what
    rows = run(capsys, "verify", "--model", "bundled:tiny", *place, code=1)["rows"]
    assert rows
    for row in rows:
        assert "another VAE: found Qwen-Image-2.1, expected Qwen-Image" in row["reason"]


def test_tiles_and_a_batch(engines: Path) -> None:
    model = ort_engines.tiny_21()
    vae = load_vae(engines, model=model, backend="onnxruntime", fallback="raise")
    z = torch.randn((2, 64, 1, 6, 12), generator=torch.Generator().manual_seed(0))
    with pytest.raises(EngineError, match="no engine serves"):
        vae.decode(z)  # 192 pixels are more than the profile holds
    vae.enable_tiling(128, 128)
    tiled = vae.decode(z).sample
    assert tiled.shape == (2, 4, 1, 96, 192)
    whole = model.vae.decode(z).sample
    assert (tiled - whole).abs().mean() < 0.2
    with pytest.raises(UsageError, match="side of 16 or more"):
        vae.enable_tiling(8, 8)


def test_it_stands_for_the_class_of_2_1(engines: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLQwenImage, AutoencoderKLQwenImage21

    vae = load_vae(engines, model=ort_engines.tiny_21(), backend="onnxruntime")
    assert isinstance(vae, AutoencoderKLQwenImage21)
    assert not isinstance(vae, AutoencoderKLQwenImage)
    assert type(vae) == AutoencoderKLQwenImage21  # noqa: E721 (what from_pipe asks)
    assert (vae.spatial_compression_ratio, vae.config.z_dim) == (16, 64)
    vae.save_pretrained(tmp_path)
    assert AutoencoderKLQwenImage21.from_pretrained(tmp_path).config.z_dim == 64
    with pytest.raises(UsageError, match=r"2 frames, Qwen-Image-2\.1 takes one"):
        vae.decode(torch.zeros(1, 64, 2, 4, 6))


def test_lightx2v_is_told_that_there_is_none(tmp_path: Path) -> None:
    ort_engines.tiny_21().vae.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"found the VAE of Qwen-Image-2\.1, expected"):
        from_lightx2v_config({"vae_type": "tensorrt", "vae_path": str(tmp_path)})
