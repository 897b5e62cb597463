"""Tensors in safetensors files: reading, original key names, fitting to the model, hashing."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qvae_trt.errors import ModelError, printable
from qvae_trt.files.reading import open_regular
from qvae_trt.model.config import CLASS_NAMES, KNOWN_LAYOUTS, Shape

#: Names shown in a message; the rest is counted.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Headers:
    """What files hold of a VAE, before any tensor is read.

    Attributes:
        files: each with diffusers' names of its tensors, by the file's own names.
        shapes: by diffusers' names.
    """

    files: Mapping[Path, Mapping[str, str]]
    shapes: Mapping[str, Shape]


def read_headers(paths: Sequence[Path], *, where: str) -> Headers:
    """From the headers alone: a mistaken 40 GB file is refused without reading it.

    Raises:
        ModelError: a file cannot be read, two hold the same tensor, or none of a VAE.
    """
    held: dict[str, tuple[Path, Shape]] = {}
    for path in paths:
        _refuse_impostors(path)
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                if name in held:
                    twice = f"{held[name][0].name} and {path.name}"
                    raise ModelError(f"{where}: {shown([name])} is in {twice}")
                held[name] = path, tuple(file.get_slice(name).get_shape())
    files: dict[Path, dict[str, str]] = {path: {} for path in paths}
    shapes: dict[str, Shape] = {}
    for own, name in diffusers_names(held, where=where).items():
        path, shapes[name] = held[own]
        files[path][own] = name
    return Headers(files, shapes)


def read_tensors(headers: Headers) -> dict[str, Tensor]:
    """The VAE's tensors, as fp32 on the CPU. ModelError where one cannot be read."""
    tensors: dict[str, Tensor] = {}
    for path, names in headers.files.items():
        with _opened(path) as file:
            for own, name in names.items():
                tensors[name] = as_fp32(file.get_tensor(own), own, path)
    return tensors


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path}: cannot be read as safetensors: {error}",
            fix="The file is damaged or half downloaded: fetch it again.",
        ) from error


def _refuse_impostors(path: Path) -> None:
    try:
        with open_regular(path) as file:
            start = file.read(64)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise ModelError(f"{path}: is empty", fix="Fetch the file again.")
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{path}: is a Git LFS pointer, not the weights",
            fix="Run `git lfs pull` in its repository.",
        )


def as_fp32(tensor: Tensor, name: str, path: Path | str) -> Tensor:
    """ModelError for integers, NaN and infinity."""
    if not tensor.is_floating_point():
        what = f"found {tensor.dtype}, expected floating-point weights"
        raise ModelError(f"{path}: {shown([name])}: {what}")
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{path}: {shown([name])}: holds NaN or infinite values")
    return tensor


def diffusers_names(names: Iterable[str], *, where: str) -> dict[str, str]:
    """Diffusers' names for the tensors of a VAE, by the names that they have in files.

    Known are diffusers' own names and those of the original release (Wan, Qwen, ComfyUI), behind
    one prefix (`vae.`, `first_stage_model.`) and with the `_orig_mod.` of `torch.compile` at any
    place. Where there is a prefix, what lacks it is left out: a checkpoint of more than the VAE.

    The original decoder counts its residual blocks and upsamplers in one sequence,
    `num_res_blocks + 1` and then one, a stage; that of Qwen-Image-2.1 stage by stage.

    Raises:
        ModelError: no VAE, more than one, or two tensors of one name.
    """
    plain = {name: name.replace("_orig_mod.", "") for name in names}
    prefixes = sorted({match[1] for match in map(_FIRST.fullmatch, plain.values()) if match})
    if not prefixes:
        raise ModelError(
            f"{where}: has no tensor encoder.conv_in.weight, which every {CLASS_NAMES} has",
            fix=KNOWN_LAYOUTS,
        )
    if len(prefixes) > 1:
        raise ModelError(f"{where}: found several VAEs, {shown(map(repr, prefixes))}, expected one")
    inner = {
        name: short.removeprefix(prefixes[0])
        for name, short in plain.items()
        if short.startswith(prefixes[0])
    }
    if any(name.startswith("decoder.upsamples.") for name in inner.values()):
        resamplers = [int(match[1]) for match in map(_RESAMPLER.match, inner.values()) if match]
        stage_length = min(resamplers, default=3) + 1
        inner = {name: _diffusers_name(short, stage_length) for name, short in inner.items()}
    twice = sorted(name for name, count in Counter(inner.values()).items() if count > 1)
    if twice:
        raise ModelError(f"{where}: several tensors are {shown(twice)}, expected one of each")
    return inner


#: A tensor that every VAE has, with what stands before the names of all.
_FIRST = re.compile(r"(|.*\.)encoder\.(?:conv_in|conv1)\.weight")
_RESAMPLER = re.compile(r"decoder\.upsamples\.(\d+)\.resample\.")
#: A block of a level of Qwen-Image-2.1.
_NESTED = re.compile(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.\2samples\.(\d+)\.(.*)")
_PARTS = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def _diffusers_name(name: str, stage_length: int) -> str:
    nested, match = _NESTED.fullmatch(name), re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name)
    if nested:
        half, way, stage, place, rest = nested.groups()
        resamples = rest.startswith(("resample.", "time_conv."))
        member = f"{way}sampler" if resamples else f"resnets.{place}"
        name = f"{half}.{way}_blocks.{stage}.{member}.{rest}"
    elif match:
        stage, place = divmod(int(match[1]), stage_length)
        member = "upsamplers.0" if place == stage_length - 1 else f"resnets.{place}"
        name = f"decoder.up_blocks.{stage}.{member}.{match[2]}"
    for pattern, replacement in _PARTS:
        name = re.sub(pattern, replacement, name)
    return name


def check_fit(vae: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, where: str) -> None:
    """ModelError unless these are the names and shapes of the parameters of `vae`."""
    expected = {name: tuple(value.shape) for name, value in vae.state_dict().items()}
    missing = sorted(expected.keys() - shapes.keys())
    extra = sorted(shapes.keys() - expected.keys())
    if missing or extra:
        kinds = ("missing", missing), ("that the model does not have", extra)
        parts = [f"{len(names)} tensors {kind} ({shown(names)})" for kind, names in kinds if names]
        raise ModelError(f"{where}: {' and '.join(parts)}", fix=KNOWN_LAYOUTS)
    wrong = [
        f"{name}: found {shape}, expected {expected[name]}"
        for name, shape in sorted(shapes.items())
        if shape != expected[name]
    ]
    if wrong:
        raise ModelError(
            f"{where}: {len(wrong)} tensors have another shape ({shown(wrong)})",
            fix="The configuration and the weights are of different models.",
        )


def shown(names: Iterable[str]) -> str:
    """The first of these names, and how many more there are."""
    names = [printable(name, lines=False) for name in names]
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def zero_layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """The weights of nothing but zeros that no other path leads around."""
    return [name for name, value in tensors.items() if _ONLY_PATH.search(name) and not value.any()]


#: Of the layers that stand in no residual branch: those may start, and stay, at zero.
#: A downsampler and an upsampler have a shortcut around them.
_ONLY_PATH = re.compile(
    r"(quant_conv|conv_in|conv_out|(?<!sampler\.)resample\.1)\.weight$|norm_out\.gamma$"
)


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    Of the fp32 weights as used, so the same weights have the same hash whatever the file or names.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
