"""Real pictures through the VAE: a file in, a file out.

A picture is mirrored outwards until both sides are multiples of 16, run, and cropped back. Where
neither an engine nor the fused path takes that size, and an engine holds a slightly larger one, it
is padded to that: 1600x900 goes through a static engine of 1664x928, and 200x200 through a profile
that starts at 256x256.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qvae_trt import images, store
from qvae_trt.errors import PictureError, QvaeError, ResolutionError, UsageError, printable
from qvae_trt.files.writing import check_writable
from qvae_trt.kinds import scale_of
from qvae_trt.model import DEFAULT_MODEL, Model, load_model
from qvae_trt.profiles import PARTS, Part, Resolution
from qvae_trt.runtime.vae import FallbackWarning, TrtVae, load_vae

#: A picture is padded past its own multiple of 16 up to this many times its pixels.
MAX_PADDING = 1.5
#: Padding up to so many pixels is always cheap.
CHEAP_PIXELS = 256 * 256


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of one part.

    Attributes:
        size: what the part saw, after padding.
        engine: what gave the result: `static`, `profile 3`, `fused` or `folded`. Where what was
            chosen failed, what was tried after it, such as `profiles` or `folded and tiles`; the
            notes say why.
        path: the file of the engine that was chosen, if it gave the result.
        seconds: of the run, with the loading of the engine.
        notes: what the VAE warned of.
    """

    part: Part
    size: Resolution
    engine: str
    path: Path | None
    seconds: float
    considered: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A file written.

    Attributes:
        size: of the picture.
        psnr_db: of a round trip against the picture read, the range being [-1, 1]; else None.
    """

    out: Path
    size: Resolution
    psnr_db: float | None
    passes: tuple[Pass, ...]


def encode(
    picture: Path, out: Path, *, engine_dir: Path, model: str = DEFAULT_MODEL, backend: str = "auto"
) -> Outcome:
    """Encode a picture file to latents: the mean, un-normalised, with the picture's size.

    Raises:
        UsageError: `out` has another suffix than `.safetensors`, or is the picture itself.
        StoreError: `out` cannot be written.
        PictureError: the picture cannot be read, or the latents cannot be written.
        ModelError: the weights cannot be had.
    """
    _check_out(out, (".safetensors",), "latents file", source=picture)
    loaded, vae = _load(engine_dir, model, backend)
    pixels = images.read_picture(picture, channels=vae.input_channels)
    size, padded = _sizes(vae, pixels, ("encoder",), engine_dir)
    mean, run = _encode(vae, pixels, padded)
    latents = images.Latents(
        mean, size.height, size.width, printable(loaded.source), loaded.weights_sha256
    )
    images.write_latents(out, latents)
    return Outcome(out, size, None, (run,))


def decode(
    latents: Path, out: Path, *, engine_dir: Path, model: str = DEFAULT_MODEL, backend: str = "auto"
) -> Outcome:
    """Decode a latents file to a picture of the size that was encoded.

    Raises:
        UsageError: `out` is no picture by its suffix, or is the latents file itself.
        StoreError: `out` cannot be written.
        PictureError: the latents cannot be read or are another VAE's, or the picture cannot be
            written.
        ModelError: the weights cannot be had.
    """
    _check_out(out, tuple(images.WRITE_FORMATS), "picture", source=latents)
    given = images.read_latents(latents)
    _check_size(_decoded_size(given.values, scale_of(given.values.shape[1])), latents)
    loaded, vae = _load(engine_dir, model, backend)
    channels = given.values.shape[1]
    if channels != vae.z_dim:
        raise PictureError(
            f"{latents}: found {channels} latent channels, expected {vae.z_dim}, as"
            f" {loaded.kind.name} has",
            fix="Decode with the --model that encoded it.",
        )
    if given.weights_sha256 not in ("", loaded.weights_sha256):
        warnings.warn(
            f"{latents}: encoded with other weights ({given.model}) than {loaded.source}",
            stacklevel=2,
        )
    pixels, run = _decode(vae, given.values)
    images.write_picture(out, images.crop(pixels, (given.height, given.width)))
    return Outcome(out, Resolution(given.height, given.width), None, (run,))


def roundtrip(
    picture: Path,
    out: Path,
    *,
    engine_dir: Path,
    model: str = DEFAULT_MODEL,
    backend: str = "auto",
    side_by_side: bool = False,
) -> Outcome:
    """Encode a picture and decode it again.

    Args:
        side_by_side: write the picture, and its round trip to the right of it.

    Raises:
        UsageError: `out` is no picture by its suffix, or is the picture that is read.
        StoreError: `out` cannot be written.
        PictureError: the picture cannot be read or written.
        ModelError: the weights cannot be had.
    """
    _check_out(out, tuple(images.WRITE_FORMATS), "picture", source=picture)
    _, vae = _load(engine_dir, model, backend)
    pixels = images.read_picture(picture, channels=vae.input_channels)
    size, padded = _sizes(vae, pixels, PARTS, engine_dir)
    mean, encoding = _encode(vae, pixels, padded)
    decoded, decoding = _decode(vae, mean)
    again = images.crop(decoded, (size.height, size.width))
    images.write_picture(out, torch.cat((pixels, again), dim=-1) if side_by_side else again)
    return Outcome(out, size, _psnr_db(pixels, again), (encoding, decoding))


def _check_out(out: Path, suffixes: Sequence[str], kind: str, *, source: Path) -> None:
    """Before minutes of work: an error unless `out` has a suffix that can be written, can be
    written there, and is not the file that is read.
    """
    if out.suffix.lower() not in suffixes:
        raise UsageError(
            f"{out}: unknown kind of {kind} {out.suffix!r}", fix=f"Name it {', '.join(suffixes)}."
        )
    with suppress(OSError, ValueError):  # one of them is not there
        if out.samefile(source):
            raise UsageError(
                f"{out}: is the file to read, expected another one to write",
                fix="Name another --out.",
            )
    check_writable(out)


def _check_size(size: Resolution, path: Path | str) -> None:
    try:
        size.check()
    except ResolutionError as error:
        raise PictureError(f"{path}: {error.what}") from error


def _load(engine_dir: Path, model: str, backend: str) -> tuple[Model, TrtVae]:
    loaded = load_model(model)
    # Checking every result costs little next to reading and writing files.
    return loaded, load_vae(engine_dir, model=loaded, backend=backend, check_nan=True)


def _sizes(
    vae: TrtVae, pixels: Tensor, parts: Sequence[Part], engine_dir: Path
) -> tuple[Resolution, Resolution]:
    """The picture's size, and the one to pad it to: its multiple of 16, unless only a larger one
    has an engine, and the fused path does not run.
    """
    size = Resolution(pixels.shape[-2], pixels.shape[-1])
    own = Resolution(
        *(-(-side // images.MULTIPLE) * images.MULTIPLE for side in (size.height, size.width))
    )
    _check_size(own, f"a picture of {size}")
    least = [own]
    with suppress(OSError):  # of a folder that cannot be listed
        for file in store.find_engines(engine_dir):
            with suppress(QvaeError):  # choosing says what is wrong with it
                least += [profile.min for profile in store.read_sidecar(file.path).key.profiles]
    padded = {Resolution(max(own.height, m.height), max(own.width, m.width)) for m in least}
    limit = max(MAX_PADDING * own.pixels, CHEAP_PIXELS)
    for candidate in sorted(padded, key=lambda size: (size.pixels, size)):
        if candidate.pixels <= limit and all(
            vae.choice(part, candidate).engine != "folded" for part in parts
        ):
            return size, candidate
    return size, own


def _encode(vae: TrtVae, pixels: Tensor, padded: Resolution) -> tuple[Tensor, Pass]:
    x = images.pad(pixels, (padded.height, padded.width))[:, :, None]
    return _timed(vae, "encoder", padded, lambda: vae.encode(x, return_dict=False)[0].mode())


def _decode(vae: TrtVae, z: Tensor) -> tuple[Tensor, Pass]:
    size = _decoded_size(z, vae.kind.scale)
    pixels, run = _timed(vae, "decoder", size, lambda: vae.decode(z, return_dict=False)[0])
    return pixels[:, :, 0], run


def _decoded_size(z: Tensor, scale: int) -> Resolution:
    return Resolution(scale * z.shape[-2], scale * z.shape[-1])


def _timed(
    vae: TrtVae, part: Part, seen: Resolution, run: Callable[[], Tensor]
) -> tuple[Tensor, Pass]:
    choice, before = vae.choice(part, seen), _served(vae, part)
    started = time.perf_counter()
    with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        result = run().cpu()
    seconds = round(time.perf_counter() - started, 4)
    notes = []
    for warning in caught:
        if issubclass(warning.category, FallbackWarning):
            notes.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    by = " and ".join(_served(vae, part) - before)
    path = choice.path if by == choice.engine else None
    if path is not None and by == "profiles":
        by = f"profile {choice.profile_index}"
    considered = tuple(map(str, choice.candidates))
    return result, Pass(part, seen, by, path, seconds, considered, tuple(notes))


def _served(vae: TrtVae, part: Part) -> Counter[str]:
    """How many calls of a part each way has served."""
    calls: Counter[str] = Counter()
    for row in vae.status()["served"]:
        calls[row["by"]] += row["calls"] if row["part"] == part else 0
    return calls


def _psnr_db(picture: Tensor, again: Tensor) -> float:
    """Over the range [-1, 1], whose peak is 2."""
    error = float((picture - again).double().square().mean())
    return math.inf if error == 0 else 10 * math.log10(4 / error)
