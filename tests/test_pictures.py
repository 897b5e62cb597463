"""Pictures through the engines: any size, padded and cropped back, as files."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import ort_engines
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from store_cases import make_sidecar, put_engine

from qvae_trt import pictures
from qvae_trt.errors import ModelError, PictureError, StoreError, UsageError
from qvae_trt.images import Latents, pad, read_latents, read_picture, write_latents
from qvae_trt.json_rows import write
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.model import BUNDLED_TINY
from qvae_trt.profiles import Profile, Resolution, engine_path
from qvae_trt.store import sidecar_path

PHOTOGRAPH = "qvae_trt/data/pictures/astronaut.jpg"


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """A static pair of 96x64 (WxH) and a pair of 32x32 to 160x128. Shared: not to be written."""
    return ort_engines.shared(tmp_path_factory)


@pytest.fixture
def photograph(root, tmp_path):
    """Makes a file of the photograph's middle, of a given size (width, height)."""

    def make(size, name="picture.png", mode="RGB"):
        with Image.open(root / PHOTOGRAPH) as whole:
            left, top = (512 - size[0]) // 2, (512 - size[1]) // 2
            part = whole.crop((left, top, left + size[0], top + size[1])).convert(mode)
        path = tmp_path / name
        part.save(path)
        return path

    return make


def options(engines):
    return {"engine_dir": engines, "model": BUNDLED_TINY, "backend": "onnxruntime"}


def tiny_reference(path):
    """The round trip of diffusers' own VAE, padded as a picture is."""
    x = read_picture(path)
    height, width = x.shape[-2:]
    padded = pad(x, (-(-height // 16) * 16, -(-width // 16) * 16))[:, :, None]
    vae = ort_engines.tiny().vae
    with torch.inference_mode():
        mean = vae.encode(padded).latent_dist.mode()
        return mean, vae.decode(mean).sample[:, :, 0, :height, :width]


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "padded", "engine"),
    [
        ((96, 64), "96x64", "static"),
        ((96, 63), "96x64", "static"),
        ((81, 49), "96x64", "static"),
        ((64, 64), "64x64", "profile 0"),
        ((97, 33), "112x48", "profile 0"),
        ((160, 128), "160x128", "profile 0"),
        ((33, 127), "48x128", "profile 0"),
    ],
)
def test_a_round_trip_is_that_of_diffusers(engines, photograph, tmp_path, size, padded, engine):
    source, out = photograph(size), tmp_path / "out.png"
    done = pictures.roundtrip(source, out, **options(engines))
    assert str(done.size) == f"{size[0]}x{size[1]}"
    assert [(run.part, str(run.size), run.engine) for run in done.passes] == [
        ("encoder", padded, engine),
        ("decoder", padded, engine),
    ]
    assert all(run.path.is_file() and not run.notes for run in done.passes)
    again = read_picture(out)
    assert again.shape == (1, 3, size[1], size[0])
    _, expected = tiny_reference(source)
    assert float((again - expected).abs().max()) < 1.01 / 127.5  # a step of eight bits
    rms = float((read_picture(source) - expected).square().mean().sqrt())
    assert done.psnr_db == pytest.approx(20 * math.log10(2 / rms), abs=0.05)


@pytest.mark.parametrize("name", ["a.jpg", "b.webp", "c.bmp", "d.tiff"])
def test_kinds_of_files(engines, photograph, tmp_path, name):
    done = pictures.roundtrip(
        photograph((96, 64), name), tmp_path / f"out-{name}", **options(engines)
    )
    with Image.open(done.out) as picture:
        assert picture.size == (96, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_kinds_of_pixels(engines, photograph, tmp_path, mode):
    name = "in.tiff" if mode == "CMYK" else "in.png"
    done = pictures.roundtrip(
        photograph((50, 40), name, mode), tmp_path / "o.png", **options(engines)
    )
    with Image.open(done.out) as picture:
        assert (picture.size, picture.mode) == ((50, 40), "RGB")


def test_side_by_side(engines, photograph, tmp_path):
    source = photograph((75, 50))
    done = pictures.roundtrip(source, tmp_path / "two.png", side_by_side=True, **options(engines))
    both = read_picture(done.out)
    assert both.shape == (1, 3, 50, 150)
    assert torch.equal(both[..., :75], read_picture(source))
    assert not torch.equal(both[..., 75:], read_picture(source))


def test_a_photograph_comes_back_recognisably(engines, photograph, tmp_path):
    done = pictures.roundtrip(photograph((160, 128)), tmp_path / "out.png", **options(engines))
    assert done.psnr_db > 20


# --- latents --------------------------------------------------------------------------------------


def test_encoding_and_decoding_is_the_round_trip(engines, photograph, tmp_path):
    source = photograph((90, 61))
    latents, out = tmp_path / "z.safetensors", tmp_path / "out.png"
    encoded = pictures.encode(source, latents, **options(engines))
    decoded = pictures.decode(latents, out, **options(engines))
    assert str(encoded.size) == str(decoded.size) == "90x61"
    assert [run.part for run in (*encoded.passes, *decoded.passes)] == ["encoder", "decoder"]
    assert encoded.psnr_db is decoded.psnr_db is None
    trip = pictures.roundtrip(source, tmp_path / "trip.png", **options(engines))
    assert out.read_bytes() == trip.out.read_bytes()


def test_latents_are_the_mean_with_the_pictures_size(engines, photograph, tmp_path):
    source, out = photograph((90, 61)), tmp_path / "z.safetensors"
    pictures.encode(source, out, **options(engines))
    latents = read_latents(out)
    expected, _ = tiny_reference(source)
    assert latents.values.shape == (1, 16, 1, 8, 12)
    assert torch.allclose(latents.values, expected, atol=1e-3)
    assert (latents.height, latents.width) == (61, 90)
    assert latents.model == BUNDLED_TINY
    assert latents.weights_sha256 == ort_engines.tiny().weights_sha256
    with safe_open(out, framework="pt") as file:
        assert list(file.keys()) == ["latents"]


def test_latents_from_elsewhere_decode_whole(engines, tmp_path):
    save_file({"latents": torch.zeros(1, 16, 4, 6)}, tmp_path / "z.safetensors")
    done = pictures.decode(tmp_path / "z.safetensors", tmp_path / "out.png", **options(engines))
    assert str(done.size) == "48x32"


def test_latents_of_other_weights_are_decoded_with_a_warning(engines, tmp_path):
    path = tmp_path / "z.safetensors"
    write_latents(path, Latents(torch.zeros(1, 16, 1, 4, 4), 30, 20, "elsewhere", "0" * 64))
    with pytest.warns(UserWarning, match="encoded with other weights \\(elsewhere\\)"):
        done = pictures.decode(path, tmp_path / "out.png", **options(engines))
    assert str(done.size) == "20x30"


# --- which size is run ----------------------------------------------------------------------------


class Chooser:
    """A VAE that has engines of these sizes."""

    kind = QWEN_IMAGE

    def __init__(self, *sizes):
        self.sizes = {Resolution.parse(size) for size in sizes}

    def choice(self, part, resolution):
        from qvae_trt.profiles import Choice

        engine = "static" if resolution in self.sizes else "folded"
        return Choice(resolution, engine, None, ())


@pytest.mark.parametrize(
    ("size", "engines", "padded"),
    [
        ("1600x900", ["1600x912"], "1600x912"),
        ("1600x900", ["1600x912", "1664x928"], "1600x912"),
        ("1600x900", ["1664x928"], "1664x928"),
        ("1600x900", [], "1600x912"),
        ("1600x900", ["1328x1328"], "1600x912"),  # does not hold it
        ("400x400", ["1328x1328"], "400x400"),  # eleven times the pixels
        ("100x80", ["256x256"], "256x256"),
        ("100x400", ["256x400"], "112x400"),  # more than half as much again
        ("200x400", ["256x400"], "256x400"),
        ("1x1", ["256x256"], "256x256"),
        ("80x60", ["96x64"], "96x64"),  # a size that no list names
        ("200x200", ["256x256 to 1024x1024"], "256x256"),
    ],
)
def test_padding_goes_no_further_than_an_engine_is_worth(size, engines, padded, tmp_path):
    least = []
    for each in engines:
        low, _, high = each.partition(" to ")
        profile = Profile.fixed(Resolution.parse(low))
        mode: Any = "profiles" if high else "static"
        if high:
            profile = Profile(profile.min, Resolution(512, 512), Resolution.parse(high))
        path = engine_path(tmp_path, "encoder", mode, ".onnx", profile.min)
        sidecar = make_sidecar(part="encoder", mode=mode, profiles=(profile,))
        put_engine(path, sidecar, b"engine")
        least.append(low)
    broken = engine_path(tmp_path, "encoder", "static", ".onnx", Resolution(16, 16))
    put_engine(broken, make_sidecar(), b"engine")
    sidecar_path(broken).write_text("{")
    width, height = (int(side) for side in size.split("x"))
    pixels = torch.zeros(1, 3, height, width)
    found = pictures._sizes(Chooser(*least), pixels, ("encoder",), tmp_path)
    assert [str(each) for each in found] == [size, padded]


def test_without_an_engine_pytorch_serves_and_says_so(engines, photograph, tmp_path):
    done = pictures.roundtrip(photograph((200, 150)), tmp_path / "out.png", **options(engines))
    assert [run.engine for run in done.passes] == ["folded", "folded"]
    assert all(run.path is None and run.notes for run in done.passes)
    assert done.psnr_db > 20


def test_an_empty_engine_folder_is_served_by_pytorch(photograph, tmp_path):
    source = photograph((40, 30))
    done = pictures.roundtrip(source, tmp_path / "out.png", **options(tmp_path / "none"))
    assert {run.engine for run in done.passes} == {"folded"}


def test_results_are_json(engines, photograph, tmp_path):
    done = pictures.roundtrip(photograph((96, 64)), tmp_path / "out.png", **options(engines))
    data = json.loads(json.dumps(write(done), allow_nan=False))
    assert data["size"] == "96x64"
    assert [run["engine"] for run in data["passes"]] == ["static", "static"]
    assert any(line.startswith("+ static") for line in data["passes"][0]["considered"])


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("out.png", "unknown kind of latents file"),
        ("picture.png/out.safetensors", "Not a directory"),
    ],
)
def test_where_latents_cannot_go_is_said_before_any_work(photograph, tmp_path, out, said):
    with pytest.raises((StoreError, UsageError), match=said) as caught:
        pictures.encode(photograph((9, 9)), tmp_path / out, engine_dir=tmp_path, model="no/model")
    assert caught.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.png"]


@pytest.mark.parametrize(
    ("out", "error"),
    [
        ("out.safetensors", UsageError),
        ("out", UsageError),
        ("out.txt", UsageError),
        ("in-the-way.png", StoreError),
    ],
)
@pytest.mark.parametrize("command", ["decode", "roundtrip"])
def test_where_a_picture_cannot_go_is_said_before_any_work(tmp_path, command, out, error):
    (tmp_path / "in-the-way.png").mkdir()
    with pytest.raises(error):
        getattr(pictures, command)(
            tmp_path / "absent", tmp_path / out, engine_dir=tmp_path, model="no/model"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in-the-way.png"]


def test_an_engine_folder_that_cannot_be_listed_is_no_end(
    engines, photograph, tmp_path, monkeypatch
):
    def refuse(_folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures.store, "find_engines", refuse)
    done = pictures.roundtrip(photograph((96, 64)), tmp_path / "out.png", **options(engines))
    assert [run.engine for run in done.passes] == ["static", "static"]


def test_a_folder_that_is_not_there_is_made(engines, photograph, tmp_path):
    out = tmp_path / "new" / "out.png"
    pictures.roundtrip(photograph((96, 64)), out, **options(engines))
    assert out.is_file()


@pytest.mark.parametrize(
    ("command", "name"),
    [("roundtrip", "in.png"), ("decode", "in.png"), ("encode", "in.safetensors")],
)
@pytest.mark.parametrize("link", [False, True])
def test_the_file_that_is_read_is_not_written_over(tmp_path, command, name, link):
    source = out = tmp_path / name
    source.write_bytes(b"mine")
    if link:
        out = tmp_path / f"link{source.suffix}"
        out.symlink_to(source)
    with pytest.raises(UsageError, match="is the file to read, expected another one") as caught:
        getattr(pictures, command)(source, out, engine_dir=tmp_path, model="no/model")
    assert caught.value.fix
    assert source.read_bytes() == b"mine"


@pytest.mark.parametrize("content", [None, b"", b"a text", b"\x89PNG\r\n\x1a\n" + b"0" * 40])
@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_what_is_no_picture(engines, tmp_path, command, content):
    source = tmp_path / "in.png"
    if content is not None:
        source.write_bytes(content)
    out = tmp_path / ("out.safetensors" if command == "encode" else "out.png")
    with pytest.raises(PictureError, match=r"in\.png"):
        getattr(pictures, command)(source, out, **options(engines))
    assert not out.exists()


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(1, 16, 1, 4, 4)},
        {"latents": torch.zeros(2, 16, 1, 4, 4)},
        {"latents": torch.zeros(1, 4, 1, 4, 4)},
        {"latents": torch.full((1, 16, 1, 4, 4), math.nan)},
        {"latents": torch.zeros(1, 16, 1, 1, 2049)},
    ],
    ids=["another name", "a batch", "another VAE's", "NaN", "too wide"],
)
def test_what_are_no_latents(engines, tmp_path, tensors):
    source, out = tmp_path / "z.safetensors", tmp_path / "out.png"
    save_file(tensors, source)
    with pytest.raises(PictureError, match=r"z\.safetensors"):
        pictures.decode(source, out, **options(engines))
    assert not out.exists()


def test_a_model_that_is_not_there(engines, photograph, tmp_path):
    with pytest.raises(ModelError):
        pictures.roundtrip(
            photograph((9, 9)), tmp_path / "o.png", engine_dir=engines, model=str(tmp_path / "no")
        )


def test_a_picture_too_large_for_any_vae(engines, tmp_path):
    source = tmp_path / "long.png"
    Image.fromarray(np.zeros((1, 16400, 3), np.uint8)).save(source)
    with pytest.raises(PictureError, match="16400x1"):
        pictures.roundtrip(source, tmp_path / "out.png", **options(engines))
