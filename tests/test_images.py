"""Picture files of every kind that people have, latents files, and padding."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import icc_profiles
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from qvae_trt import images
from qvae_trt.errors import PictureError
from qvae_trt.images import (
    MAX_PIXELS,
    Latents,
    crop,
    pad,
    pad_to_multiple,
    read_latents,
    read_picture,
    write_latents,
    write_picture,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PHOTOGRAPH = Path(images.__file__).parent / "data" / "pictures" / "astronaut.jpg"


def as_uint8(x: torch.Tensor) -> np.ndarray:
    assert x.dtype == torch.float32
    assert x.ndim == 4
    assert x.shape[0] == 1
    assert x.min() >= -1
    assert x.max() <= 1
    return ((x[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 23, 3), np.uint8)


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "ppm", "webp"])
def test_rgb_comes_back_exactly(kind: str, noise: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"a b é.{kind}"
    Image.fromarray(noise).save(path, **({"lossless": True} if kind == "webp" else {}))
    assert np.array_equal(as_uint8(read_picture(path)), noise)
    rgba = as_uint8(read_picture(str(path), channels=4))
    assert np.array_equal(rgba[..., :3], noise)
    assert (rgba[..., 3] == 255).all()


def test_the_bundled_photograph() -> None:
    x = read_picture(PHOTOGRAPH)
    assert x.shape == (1, 3, 512, 512)
    assert x.std() > 0.4
    assert PHOTOGRAPH.with_name("README.md").read_text().count("public domain") == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    picture = Image.new("RGB", (4, 2), (255, 255, 255))
    kind = {"CMYK": "tif", "YCbCr": "tif", "PA": "png"}.get(mode, "png")
    if mode == "PA":
        picture = picture.convert("P")
        picture.info["transparency"] = b"\xff" * 256
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"x.{kind}")
    assert (as_uint8(read_picture(tmp_path / f"x.{kind}")) >= 254).all()


def test_palette_and_cmyk_keep_their_colours(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 1))
    picture.putdata([RED, BLUE])
    picture.quantize(4).save(tmp_path / "p.png")
    assert as_uint8(read_picture(tmp_path / "p.png")).tolist() == [[list(RED), list(BLUE)]]
    picture.convert("CMYK").save(tmp_path / "c.tif")
    assert Image.open(tmp_path / "c.tif").mode == "CMYK"
    assert as_uint8(read_picture(tmp_path / "c.tif")).tolist() == [[list(RED), list(BLUE)]]


def test_alpha_lies_over_white_or_is_kept(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (3, 1))
    picture.putdata([(*RED, 0), (*RED, 255), (0, 0, 0, 51)])
    picture.save(tmp_path / "a.png")
    flat = as_uint8(read_picture(tmp_path / "a.png"))
    assert flat.tolist() == [[[255, 255, 255], list(RED), [204, 204, 204]]]
    kept = as_uint8(read_picture(tmp_path / "a.png", channels=4))
    assert kept.tolist() == [[[*RED, 0], [*RED, 255], [0, 0, 0, 51]]]


def test_a_transparent_palette_entry(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *GREEN])
    picture.putdata([0, 1])
    picture.save(tmp_path / "t.png", transparency=0)
    assert as_uint8(read_picture(tmp_path / "t.png"))[0].tolist() == [[255, 255, 255], list(GREEN)]
    assert as_uint8(read_picture(tmp_path / "t.png", channels=4))[0, :, 3].tolist() == [0, 255]


def test_sixteen_bit_grey_keeps_its_range_and_its_steps(tmp_path: Path) -> None:
    values = np.array([[0, 1, 300, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "g.png")
    x = read_picture(tmp_path / "g.png")
    expected = torch.from_numpy(values.astype(np.float32)) / 65535 * 2 - 1
    assert x.shape == (1, 3, 1, 5)
    assert all(torch.allclose(x[0, c], expected, atol=1e-6) for c in range(3))
    assert read_picture(tmp_path / "g.png", channels=4)[0, 3].eq(1).all()


def chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    depth: int,
    colour: int,
    rows: bytes,
    *,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG, with other chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before
    return start + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def test_sixteen_bit_rgb(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 65535, 0, 257 * 128, 0, 65535, 257)
    (tmp_path / "c.png").write_bytes(png(2, 1, 16, 2, row))
    assert as_uint8(read_picture(tmp_path / "c.png")).tolist() == [[[255, 0, 128], [0, 255, 1]]]


@pytest.mark.parametrize(
    ("depth", "colour", "transparent", "row", "values"),
    [
        (16, 0, (300,), struct.pack(">4H", 300, 301, 0, 65535), [300, 301, 0, 65535]),
        (8, 0, (5,), bytes([5, 6, 0, 255]), [5, 6, 0, 255]),
        (4, 0, (5,), bytes([0x56, 0x0F]), [85, 102, 0, 255]),
        (2, 0, (1,), bytes([0b01_10_00_11]), [85, 170, 0, 255]),
        (1, 0, (1,), bytes([0b1000_0000]), [255, 0, 0, 0]),
        (16, 2, (0x1234, 0, 0), struct.pack(">12H", 0x1234, *[0] * 11), [0x12, 0, 0, 0]),
        (8, 2, (9, 0, 0), bytes([9, *[0] * 11]), [9, 0, 0, 0]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else "",
)
def test_the_transparent_colour_of_a_png(
    depth: int,
    colour: int,
    transparent: tuple[int, ...],
    row: bytes,
    values: list[int],
    tmp_path: Path,
) -> None:
    """Its first pixel is transparent: white without alpha, and alpha 0 with it; the others stay."""
    trns = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    (tmp_path / "t.png").write_bytes(png(4, 1, depth, colour, b"\0" + row, before=trns))
    most = 65535 if (depth, colour) == (16, 0) else 255
    expected = torch.tensor(values) / most * 2 - 1
    rgba = read_picture(tmp_path / "t.png", channels=4)[0, :, 0]
    assert rgba[3].tolist() == [-1, 1, 1, 1]
    torch.testing.assert_close(rgba[0], expected)
    flat = read_picture(tmp_path / "t.png")[0, :, 0]
    assert flat[:, 0].tolist() == [1, 1, 1]
    torch.testing.assert_close(flat[0, 1:], expected[1:])


# --- ICC profiles --------------------------------------------------------------------------------


@pytest.fixture
def colours() -> np.ndarray:
    """(6, 8, 3) of sRGB; not too dark, where a step of a file is a large one."""
    return np.random.default_rng(4).integers(64, 256, (6, 8, 3), np.uint8)


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
def test_a_profile_is_converted_to_srgb(kind: str, colours: np.ndarray, tmp_path: Path) -> None:
    stored = np.rint(icc_profiles.in_display_p3(colours / 255) * 255).astype(np.uint8)
    assert np.abs(stored.astype(int) - colours).max() > 10
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(kind, {})
    path = tmp_path / f"p3.{kind}"
    Image.fromarray(stored).save(path, icc_profile=icc_profiles.display_p3(), **options)
    read = as_uint8(read_picture(path)).astype(int)
    assert np.abs(read - colours).max() <= (6 if kind == "jpg" else 1)
    write_picture(tmp_path / "again.png", read_picture(path))
    assert np.array_equal(as_uint8(read_picture(tmp_path / "again.png")), read)


def test_a_profile_leaves_alpha_and_palettes_whole(colours: np.ndarray, tmp_path: Path) -> None:
    stored = np.rint(icc_profiles.in_display_p3(colours / 255) * 255).astype(np.uint8)
    alpha = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    profile = icc_profiles.display_p3()
    Image.fromarray(np.dstack((stored, alpha))).save(tmp_path / "a.png", icc_profile=profile)
    read = as_uint8(read_picture(tmp_path / "a.png", channels=4)).astype(int)
    assert np.array_equal(read[..., 3], alpha)
    assert np.abs(read[..., :3] - colours).max() <= 1
    palette = Image.fromarray(stored).quantize(64)
    palette.save(tmp_path / "p.png", icc_profile=profile, transparency=palette.getpixel((0, 0)))
    read = as_uint8(read_picture(tmp_path / "p.png", channels=4)).astype(int)
    assert read[0, 0, 3] == 0
    assert np.abs(read[..., :3] - colours).mean() < 8


@pytest.mark.parametrize("bits", [8, 16])
def test_a_profile_of_grey(bits: int, tmp_path: Path) -> None:
    most = 2**bits - 1
    values = np.linspace(most // 8, most, 200).astype(np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / "g.png"
    Image.fromarray(values[None]).save(path, icc_profile=icc_profiles.grey(1.8))
    read = (read_picture(path)[0] + 1) / 2
    expected = icc_profiles.from_linear((values / most) ** 1.8)
    assert np.abs(read.numpy() - expected).max() < 2 / 255
    assert bits == 8 or len(read[0].unique()) == 200, "16 bits keep their steps"


def test_a_profile_of_inks(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0]]], np.uint8)
    picture = Image.frombytes("CMYK", (2, 1), inks.tobytes())
    picture.save(tmp_path / "c.tif", icc_profile=icc_profiles.printer())
    white, cyan = as_uint8(read_picture(tmp_path / "c.tif"))[0].astype(int)
    assert white.min() >= 253
    assert np.ptp(cyan) <= 2, "the printer's grey, not the cyan of no profile"


@pytest.mark.parametrize("profile", [b"no profile", icc_profiles.printer(), icc_profiles.grey(2.2)])
def test_a_profile_that_cannot_be_used_is_said(
    profile: bytes, colours: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(colours).save(tmp_path / "x.png", icc_profile=profile)
    with pytest.warns(UserWarning, match=r"x\.png: its ICC profile is not used: "):
        assert np.array_equal(as_uint8(read_picture(tmp_path / "x.png")), colours)


def test_a_profile_that_does_not_unpack_is_said(tmp_path: Path) -> None:
    damaged = chunk(b"iCCP", b"x\0\0" + zlib.compress(icc_profiles.display_p3())[:-40])
    (tmp_path / "x.png").write_bytes(png(1, 1, 8, 2, b"\0abc", before=damaged))
    with pytest.warns(UserWarning, match="its ICC profile is not used"):
        assert as_uint8(read_picture(tmp_path / "x.png")).tobytes() == b"abc"


# --- EXIF, text, sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_long_text_in_a_png(kind: bytes, place: str, tmp_path: Path) -> None:
    """A workflow of ComfyUI, say: its pixels are sound."""
    text = b"x" * (5 << 20)
    packed = {
        b"tEXt": b"k\0" + text,
        b"zTXt": b"k\0\0" + zlib.compress(text),
        b"iTXt": b"k\0\1\0\0\0" + zlib.compress(text),
    }[kind]
    whole = png(1, 1, 8, 2, b"\0abc", **{place: chunk(kind, packed)})
    (tmp_path / "t.png").write_bytes(whole)
    assert as_uint8(read_picture(tmp_path / "t.png")).tobytes() == b"abc"


def test_a_long_profile_in_a_png(colours: np.ndarray, tmp_path: Path) -> None:
    stored = np.rint(icc_profiles.in_display_p3(colours / 255) * 255).astype(np.uint8)
    profile = icc_profiles.display_p3(padding=3 << 20)
    Image.fromarray(stored).save(tmp_path / "x.png", icc_profile=profile)
    read = as_uint8(read_picture(tmp_path / "x.png")).astype(int)
    assert np.abs(read - colours).max() <= 1


# What a camera writes for each orientation, so that the picture stands upright when shown.
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_exif_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:], upright[16:, :24] = RED, GREEN, BLUE
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{kind}"
    options = {"quality": 100, "subsampling": 0} if kind == "jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif.tobytes(), **options)
    read = as_uint8(read_picture(path)).astype(int)
    assert read.shape == upright.shape
    assert np.abs(read - upright).max() <= 3


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (as_uint8(read_picture(tmp_path / "a.gif")) == RED).all()


def test_one_pixel_and_a_long_strip(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "one.png")
    assert as_uint8(read_picture(tmp_path / "one.png")).tolist() == [[list(RED)]]
    Image.new("RGB", (20_000, 20), BLUE).save(tmp_path / "strip.png")
    assert read_picture(tmp_path / "strip.png").shape == (1, 3, 20, 20_000)


@pytest.mark.parametrize("side", [8193, 12_000, 20_000, 2**31 - 1])
def test_too_many_pixels_are_refused_from_the_header_alone(side: int, tmp_path: Path) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b"\0" * 10_000))
    with pytest.raises(PictureError, match="too large") as caught:
        read_picture(tmp_path / "bomb.png")
    assert str(MAX_PIXELS) in str(caught.value)


def test_a_bomb_in_the_text_of_a_png(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * (80 << 20)))
    (tmp_path / "t.png").write_bytes(png(1, 1, 8, 2, b"\0abc", before=text))
    try:
        assert read_picture(tmp_path / "t.png").shape == (1, 3, 1, 1)
    except PictureError as error:
        assert "damaged" in error.what


def test_missing_empty_and_no_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"nothing\.png: no such picture"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="cannot be read: is a directory, expected a file"):
        read_picture(tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(PictureError, match="the picture is empty"):
        read_picture(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("This is no picture.\n" * 10)
    with pytest.raises(PictureError, match="is no picture that can be read") as caught:
        read_picture(tmp_path / "text.png")
    assert "PNG" in str(caught.value)
    with pytest.raises(PictureError, match="cannot be read"):
        read_picture("a\0b.png")
    with pytest.raises(PictureError, match="cannot be read: File name too long"):
        read_picture("x" * 5000)


def test_programs_in_pictures_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(PictureError, match="is no picture that can be read"):
        read_picture(tmp_path / "x.png")


def test_floating_point_pixels(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(PictureError, match="F pixels are not read here"):
        read_picture(tmp_path / "f.tif")
    Image.fromarray(np.full((2, 2), -5, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(PictureError, match="expected 16 bits"):
        read_picture(tmp_path / "i.tif")


def encoded(kind: str) -> bytes:
    rng = np.random.default_rng(1)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_at_every_tenth(kind: str, tmp_path: Path) -> None:
    data = encoded(kind)
    for tenth in range(1, 10):
        path = tmp_path / f"{tenth}.png"
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(PictureError):
            read_picture(path)


ENCODED = {kind: encoded(kind) for kind in images.READ_FORMATS}


@given(
    st.sampled_from(images.READ_FORMATS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=8),
)
@settings(max_examples=400, deadline=None)
def test_damaged_bytes_give_a_picture_or_a_picture_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(ENCODED[kind])
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(data)
    try:
        x = read_picture(path)
    except PictureError as error:
        assert str(path) in str(error)
    else:
        assert x.shape[:2] == (1, 3)
        assert torch.isfinite(x).all()


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", [".png", ".tif", ".tiff", ".webp", ".PNG"])
def test_lossless_kinds_come_back_exactly(kind: str, channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (9, 14, channels), np.uint8)
    if channels == 4:
        pixels[..., 3] |= 1  # WebP drops the colour of what nobody can see
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    write_picture(tmp_path / f"x{kind}", x)
    assert np.array_equal(as_uint8(read_picture(tmp_path / f"x{kind}", channels=channels)), pixels)
    assert names(tmp_path) == [f"x{kind}"]


@pytest.mark.parametrize("name", ["x" * 251, "图" * 83])
def test_the_longest_names_can_be_written(name: str, tmp_path: Path) -> None:
    write_picture(tmp_path / f"{name}.png", torch.zeros(1, 3, 4, 4))
    assert names(tmp_path) == [f"{name}.png"]


@pytest.mark.parametrize("kind", [".jpg", ".jpeg", ".bmp"])
def test_kinds_without_alpha_lay_it_over_white(kind: str, tmp_path: Path) -> None:
    x = torch.full((1, 4, 16, 16), -1.0)
    write_picture(tmp_path / f"x{kind}", x)
    assert (as_uint8(read_picture(tmp_path / f"x{kind}")) >= 254).all()


def test_five_dimensions_half_types_strides_and_values_outside(tmp_path: Path) -> None:
    x = torch.linspace(-3, 3, 3 * 4 * 6).reshape(1, 3, 1, 4, 6)
    expected = as_uint8(x[:, :, 0].clamp(-1, 1))
    write_picture(tmp_path / "a.png", x)
    assert np.array_equal(as_uint8(read_picture(tmp_path / "a.png")), expected)
    write_picture(tmp_path / "a.png", x.transpose(3, 4).contiguous().transpose(3, 4))
    assert np.array_equal(as_uint8(read_picture(tmp_path / "a.png")), expected)
    write_picture(tmp_path / "a.png", x.bfloat16())
    assert np.abs(as_uint8(read_picture(tmp_path / "a.png")).astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    "shape", [(3, 4, 4), (2, 3, 4, 4), (1, 1, 4, 4), (1, 5, 4, 4), (1, 3, 2, 4, 4), (1, 3, 0, 4)]
)
def test_other_shapes_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="found pixels of shape"):
        write_picture(tmp_path / "x.png", torch.zeros(shape))
    assert not names(tmp_path)


def test_nan_is_not_written(tmp_path: Path) -> None:
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0, 0, 0] = float("nan")
    with pytest.raises(PictureError, match="NaN"):
        write_picture(tmp_path / "x.png", x)
    assert not names(tmp_path)


def test_unknown_extension(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"unknown kind of picture '\.xyz'") as caught:
        write_picture(tmp_path / "x.xyz", torch.zeros(1, 3, 4, 4))
    assert ".png" in str(caught.value)


def test_writing_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="cannot write"):
        write_picture("/proc/x.png", torch.zeros(1, 3, 4, 4))
    (tmp_path / "d.png").mkdir()
    with pytest.raises(PictureError, match="cannot write"):
        write_picture(tmp_path / "d.png", torch.zeros(1, 3, 4, 4))
    assert names(tmp_path) == ["d.png"]


@pytest.mark.parametrize("name", ["x.jpg", "x.webp"])
def test_a_side_that_the_format_has_no_room_for(name: str, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="cannot be made a ") as caught:
        write_picture(tmp_path / name, torch.zeros(1, 3, 1, 65_536))
    assert ".png" in str(caught.value)
    assert not names(tmp_path)


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_picture(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    write_picture(path, torch.zeros(1, 3, 4, 4))
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail)
    expected = PictureError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_picture(path, torch.ones(1, 3, 4, 4))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.png"]


# --- padding -------------------------------------------------------------------------------------


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([3, 4, 5]),
)
@settings(max_examples=150, deadline=None)
def test_padding_and_cropping(h: int, w: int, multiple: int, rank: int) -> None:
    x = torch.rand((*(1, 3, 1)[: rank - 2], h, w))
    padded = pad_to_multiple(x, multiple)
    assert padded.shape[:-2] == x.shape[:-2]
    for found, given_side in zip(padded.shape[-2:], (h, w), strict=True):
        assert found % multiple == 0
        assert found - multiple < given_side <= found
    assert torch.equal(crop(padded, (h, w)), x)
    assert set(padded.unique().tolist()) == set(x.unique().tolist())


def test_padding_mirrors() -> None:
    x = torch.arange(3.0)[None].repeat(2, 1)
    assert pad_to_multiple(x, 8)[0].tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert pad_to_multiple(torch.full((1, 3, 1, 1), 0.5)).eq(0.5).all()
    whole = torch.rand(1, 3, 16, 32)
    assert pad_to_multiple(whole) is whole


def test_padding_leaves_the_picture_where_it_is() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    padded = pad(x, (8, 16))
    assert padded.shape == (1, 1, 8, 16)
    assert torch.equal(padded[:, :, :3, :4], x)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 3, 3, 2, 1, 0] * 2
    assert padded[0, 0, :, 0].tolist() == [0, 4, 8, 8, 4, 0, 0, 4]


# --- latents -------------------------------------------------------------------------------------


def test_latents_come_back(tmp_path: Path) -> None:
    values = torch.randn(1, 16, 1, 2, 3)
    write_latents(tmp_path / "z.safetensors", Latents(values, 13, 20, "bundled:tiny", "ab" * 32))
    read = read_latents(tmp_path / "z.safetensors")
    assert torch.equal(read.values, values)
    assert (read.height, read.width) == (13, 20)
    assert (read.model, read.weights_sha256) == ("bundled:tiny", "ab" * 32)
    assert names(tmp_path) == ["z.safetensors"]


def test_latents_of_another_program(tmp_path: Path) -> None:
    save_file(
        {"latents": torch.zeros(1, 16, 2, 3, dtype=torch.bfloat16)}, tmp_path / "z.safetensors"
    )
    read = read_latents(tmp_path / "z.safetensors")
    assert (read.values.shape, read.values.dtype) == ((1, 16, 1, 2, 3), torch.float32)
    assert (read.height, read.width, read.model) == (16, 24, "")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.zeros(1)}, "found x, expected a tensor named latents"),
        ({}, "found no tensor"),
        ({"latents": torch.zeros(2, 16, 1, 2, 2)}, "found latents of shape"),
        ({"latents": torch.zeros(1, 16, 2, 2, 2)}, "found latents of shape"),
        ({"latents": torch.zeros(1, 16, 1, 0, 2)}, "found latents of shape"),
        ({"latents": torch.zeros(16)}, "found latents of shape"),
        ({"latents": torch.zeros(1, 16, 1, 2, 2, dtype=torch.int32)}, "not finite floating"),
        ({"latents": torch.full((1, 16, 1, 2, 2), float("nan"))}, "not finite floating"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_latents_files_that_hold_something_else(
    tensors: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "z.safetensors")
    with pytest.raises(PictureError, match=words):
        read_latents(tmp_path / "z.safetensors")


@pytest.mark.parametrize("text", ["0", "-1", "17", "x", "", "1e3", "٣", "9" * 50])
def test_latents_with_an_impossible_size(text: str, tmp_path: Path) -> None:
    data = {"latents": torch.zeros(1, 16, 1, 2, 2)}
    save_file(data, tmp_path / "z.safetensors", metadata={"height": text})
    with pytest.raises(PictureError, match="height"):
        read_latents(tmp_path / "z.safetensors")


def test_damaged_latents(tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    with pytest.raises(PictureError, match="no such latents file"):
        read_latents(path)
    write_latents(path, Latents(torch.zeros(1, 16, 1, 2, 2), 16, 16))
    data = path.read_bytes()
    for end in (0, 4, 8, 50, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(PictureError):
            read_latents(path)
    with pytest.raises(PictureError, match=r"Name it \.safetensors"):
        write_latents(tmp_path / "z.npy", Latents(torch.zeros(1, 16, 1, 2, 2), 16, 16))


def test_reading_a_picture_needs_neither_diffusers_nor_onnx() -> None:
    import subprocess

    script = (
        "import sys, qvae_trt.images; print([m for m in ('diffusers', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
