"""Picture files and latents files to tensors and back; padding to what the VAE takes."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageFile, ImageOps, PngImagePlugin, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qvae_trt.errors import PictureError, StoreError
from qvae_trt.files.reading import open_regular
from qvae_trt.files.writing import replace_file
from qvae_trt.kinds import scale_of

#: What Pillow may open here. Left out on purpose: formats that start other programs (EPS).
READ_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Extension → Pillow's format and its options.
WRITE_FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    ".png": ("PNG", {"compress_level": 4}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}
#: 8192 x 8192: far past the largest engine, and 0.8 GB as fp32 RGB.
MAX_PIXELS = 1 << 26
MULTIPLE = 16
LATENTS_FORMAT = "qvae-latents-1"

_GREY_MODES = ("1", "L", "LA")
#: ICC colour space → the mode the profile is applied in, and the modes that pixels may have.
_PROFILED: dict[str, tuple[str, tuple[str, ...]]] = {
    "RGB ": ("RGB", ("RGB", "RGBA", "P", "PA", "YCbCr", *_GREY_MODES)),
    "GRAY": ("L", _GREY_MODES),
    "CMYK": ("CMYK", ("CMYK",)),
}

# By default Pillow refuses a valid PNG for one text chunk of more than 1 MiB. Its limit for all of
# them together, against decompression bombs, stays.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


# --- pictures ------------------------------------------------------------------------------------


def read_picture(path: str | Path, *, channels: int = 3) -> Tensor:
    """Read a picture, turned as its EXIF orientation says; of an animation, the first frame.

    An ICC profile is converted to sRGB; one that cannot be used is warned of.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP, GIF or PPM; 8 or 16 bits, grey, palette, RGB, CMYK, with
            or without alpha.
        channels: 3 lays transparent pixels over white; 4 keeps alpha, opaque where there is none.

    Returns:
        (1, channels, H, W) fp32 in [-1, 1].

    Raises:
        PictureError: missing, no picture, damaged, floating-point, or larger than MAX_PIXELS.
    """
    path = Path(path)
    _check_readable(path, "picture")
    try:
        with warnings.catch_warnings():
            # Damage that Pillow can repair needs no warning; a decompression bomb is refused.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=READ_FORMATS) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise _too_large(path, f"{width}x{height}")
                _scale_transparent_colour(picture)
                picture.load()
                upright = ImageOps.exif_transpose(picture)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "more") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path}: is no picture that can be read here",
            fix=f"Give one of {', '.join(READ_FORMATS)}.",
        ) from error
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        raise PictureError(
            f"{path}: the picture is damaged, or of a kind not read here: {error}"
        ) from error
    try:
        pixels = _unit_pixels(upright, channels, path)
    except ValueError as error:
        raise PictureError(f"{path}: {picture.mode} pixels are not read here: {error}") from error
    x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
    return x.mul_(2).sub_(1)


def _too_large(path: Path, found: str) -> PictureError:
    return PictureError(
        f"{path}: too large: found {found} pixels, expected at most {MAX_PIXELS} in all",
        fix="Scale it down first.",
    )


def _scale_transparent_colour(picture: ImageFile.ImageFile) -> None:
    """Pillow scales a PNG's pixels to 8 bits, and leaves its transparent colour as in the file."""
    colour = picture.info.get("transparency")
    if picture.format != "PNG" or colour is None:
        return
    depth = picture.tile[0].args
    if depth in ("L;2", "L;4"):
        picture.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B":
        picture.info["transparency"] = tuple(value >> 8 for value in colour)


def _unit_pixels(picture: Image.Image, channels: int, path: Path) -> np.ndarray:
    """(H, W, channels) fp32 in [0, 1]."""
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; save it with 8 or 16 bits")
    alpha = channels == 4 or picture.has_transparency_data
    if picture.mode.startswith("I"):
        pixels = _grey_pixels(picture, alpha=alpha, path=path)
    else:
        converted = _in_srgb(picture, path).convert("RGBA" if alpha else "RGB")
        pixels = np.asarray(converted, dtype=np.float32) / np.float32(255)
    return over_white(pixels) if pixels.shape[-1] > channels else pixels


def _grey_pixels(picture: Image.Image, *, alpha: bool, path: Path) -> np.ndarray:
    """(H, W, 3 or 4) of 16-bit grey; Pillow's own conversion to RGB would cut it at 255."""
    grey = np.asarray(picture)
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError(f"found values {grey.min()} to {grey.max()}, expected 16 bits")
    levels = np.repeat(np.arange(65536, dtype=np.float32)[:, None] / np.float32(65535), 3, axis=1)
    if "icc_profile" in picture.info:
        # Profiles are applied to 8 bits: what they make of those 256 levels, and between them.
        steps = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        steps.info["icc_profile"] = picture.info["icc_profile"]
        curves = np.asarray(_in_srgb(steps, path).convert("RGB"))[0].T / 255
        known = np.linspace(0, 1, 256)
        levels = np.stack([np.interp(levels[:, 0], known, curve) for curve in curves], axis=1)
        levels = levels.astype(np.float32)
    rgb = levels[grey]
    if not alpha:
        return rgb
    opaque = np.not_equal(grey, picture.info.get("transparency", -1))
    return np.concatenate((rgb, opaque[..., None].astype(np.float32)), axis=-1)


def _in_srgb(picture: Image.Image, path: Path) -> Image.Image:
    """RGB or RGBA of 8 bits in sRGB where the picture has an ICC profile, else the picture."""
    if "icc_profile" not in picture.info:
        return picture
    try:
        # None where Pillow could not unpack it.
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"] or b""))
        space = profile.profile.xcolor_space
        mode, modes = _PROFILED.get(space, ("", ()))
        if picture.mode not in modes:
            raise ValueError(f"it is for {space.strip()}, the pixels are {picture.mode}")
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB")
        converted = transform.apply(picture.convert(mode))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError, ImportError) as error:
        warnings.warn(f"{path}: its ICC profile is not used: {error}", stacklevel=4)
        return picture
    if picture.has_transparency_data:
        converted.putalpha(picture.convert("RGBA").getchannel("A"))
    return converted


def over_white(rgba: np.ndarray) -> np.ndarray:
    """(..., 4) in [0, 1], alpha not premultiplied → (..., 3) in [0, 1]."""
    rgb, alpha = rgba[..., :3], rgba[..., 3:]
    return rgb * alpha + (1 - alpha)


def write_picture(path: str | Path, pixels: Tensor) -> None:
    """Write a picture by its extension; whole or not at all.

    Args:
        path: one of WRITE_FORMATS. JPEG and BMP have no alpha: RGBA is laid over white.
        pixels: (1, C, H, W) or (1, C, 1, H, W), C 3 or 4, any floating type and device, in [-1, 1];
            values outside are cut.

    Raises:
        PictureError: another extension or shape, NaN, or the file system refuses.
    """
    path = Path(path)
    kind = WRITE_FORMATS.get(path.suffix.lower())
    if kind is None:
        raise PictureError(
            f"{path}: unknown kind of picture {path.suffix!r}",
            fix=f"Name it {', '.join(WRITE_FORMATS)}.",
        )
    x = pixels.detach()
    if x.ndim == 5 and x.shape[2] == 1:
        x = x[:, :, 0]
    if x.ndim != 4 or x.shape[0] != 1 or x.shape[1] not in (3, 4) or x.numel() == 0:
        raise PictureError(
            f"{path}: found pixels of shape {tuple(pixels.shape)}, expected (1, 3 or 4, H, W)"
        )
    x = x[0].float().permute(1, 2, 0).cpu()
    if not bool(torch.isfinite(x).all()):
        raise PictureError(f"{path}: not written: the pixels hold NaN or infinite values")
    unit = (x / 2 + 0.5).clamp_(0, 1).numpy()
    name, options = kind
    if name in ("JPEG", "BMP") and unit.shape[-1] == 4:
        unit = over_white(unit)
    picture = Image.fromarray((unit * 255).round().astype(np.uint8))
    file = io.BytesIO()
    try:
        picture.save(file, format=name, **options)
    except (OSError, ValueError) as error:  # longer sides than the format has room for
        raise PictureError(f"{path}: cannot be made a {name}: {error}", fix="use .png") from error
    _write(path, file.getvalue())


# --- sizes ---------------------------------------------------------------------------------------


def pad_to_multiple(x: Tensor, multiple: int = MULTIPLE) -> Tensor:
    """`pad` to the next sides that are multiples: (..., H, W) → (..., H', W')."""
    height, width = (-(-side // multiple) * multiple for side in x.shape[-2:])
    return pad(x, (height, width))


def pad(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror a picture outwards, below and to the right; `crop(_, (H, W))` undoes it.

    Args:
        x: (..., H, W), both at least 1.
        size: (height, width), neither under x's.

    Returns:
        (..., height, width).

    >>> pad(torch.tensor([[1, 2, 3]]), (1, 5))
    tensor([[1, 2, 3, 3, 2]])
    """
    for dim, target in zip((-2, -1), size, strict=True):
        length = x.shape[dim]
        if target != length:
            place = torch.arange(target, device=x.device) % (2 * length)
            x = x.index_select(dim, torch.minimum(place, 2 * length - 1 - place))
    return x


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left (height, width) of (..., H, W)."""
    return x[..., : size[0], : size[1]]


# --- latents -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Latents:
    """What a latents file holds.

    Attributes:
        values: (1, z, 1, h, w) fp32, un-normalised, as the VAE's `decode` takes them.
        height, width: of the picture, in pixels, before it was padded to (8h, 8w).
        model: the `--model` that made them, "" where unknown.
        weights_sha256: of that model's weights, "" where unknown.
    """

    values: Tensor
    height: int
    width: int
    model: str = ""
    weights_sha256: str = ""


def write_latents(path: str | Path, latents: Latents) -> None:
    """Write a `.safetensors` with one tensor, `latents`; whole or not at all."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise PictureError(
            f"{path}: unknown kind of latents file {path.suffix!r}", fix="Name it .safetensors."
        )
    metadata = {
        "format": LATENTS_FORMAT,
        "height": str(latents.height),
        "width": str(latents.width),
        "model": latents.model,
        "weights_sha256": latents.weights_sha256,
    }
    values = latents.values.detach().float().cpu().contiguous()
    _write(path, save({"latents": values}, metadata=metadata))


def read_latents(path: str | Path) -> Latents:
    """Read what `write_latents` wrote, or another safetensors file with a tensor `latents`.

    Raises:
        PictureError: missing, damaged, no tensor `latents` of one picture, NaN, or an impossible
            size.
    """
    path = Path(path)
    _check_readable(path, "latents file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = sorted(file.keys())
            values = file.get_tensor("latents") if "latents" in names else None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PictureError(
            f"{path}: cannot be read as safetensors: {error}",
            fix="Make it with `qvae encode IMAGE --out LATENTS.safetensors`.",
        ) from error
    if values is None:
        found = ", ".join(names[:4]) or "no tensor"
        raise PictureError(f"{path}: found {found}, expected a tensor named latents")
    if values.ndim == 4:
        values = values[:, :, None]
    shape = tuple(values.shape)
    if len(shape) != 5 or shape[0] != 1 or shape[2] != 1 or 0 in shape:
        raise PictureError(f"{path}: found latents of shape {shape}, expected (1, z, 1, h, w)")
    if not values.is_floating_point() or not bool(torch.isfinite(values.float()).all()):
        raise PictureError(f"{path}: the latents are not finite floating-point numbers")
    rows, columns = (scale_of(shape[1]) * side for side in shape[-2:])
    return Latents(
        values.float(),
        _side(metadata, "height", rows, path),
        _side(metadata, "width", columns, path),
        metadata.get("model", ""),
        metadata.get("weights_sha256", ""),
    )


def _side(metadata: dict[str, str], name: str, limit: int, path: Path) -> int:
    text = metadata.get(name, str(limit))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= limit):
        raise PictureError(f"{path}: {name}: found {text!r}, expected 1 to {limit}")
    return int(text)


# --- files ---------------------------------------------------------------------------------------


def _check_readable(path: Path, what: str) -> None:
    try:
        with open_regular(path) as file:
            empty = not file.read(1)
    except FileNotFoundError as error:
        raise PictureError(f"{path}: no such {what}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PictureError(f"{path}: cannot be read: {reason}") from error
    if empty:
        raise PictureError(f"{path}: the {what} is empty")


def _write(path: Path, data: bytes) -> None:
    try:
        with replace_file(path) as partial:
            partial.write_bytes(data)
    except StoreError as error:
        raise PictureError(error.what, fix=error.fix) from error
