"""Tensors in safetensors files: reading, original key names, fitting to the model, hashing."""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from qvae_trt.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

Value = TypeVar("Value")
#: Names shown in a message; the rest is counted.
_SHOWN = 3


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Name → shape, from the headers alone: a mistaken 40 GB file is refused without reading it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        _refuse_impostors(path)
        with _opened(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def read_tensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """All tensors of these files, as fp32 on the CPU. ModelError where one cannot be read."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[name] = _as_fp32(file.get_tensor(name), name, path)
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
        with path.open("rb") as file:
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


def _as_fp32(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point():
        raise ModelError(f"{path}: {name}: found {tensor.dtype}, expected floating-point weights")
    tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{path}: {name}: holds NaN or infinite values")
    return tensor


def rename_original(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Diffusers' names for tensors named as in the original release (Wan, Qwen, ComfyUI).

    Files that have diffusers' names already come back as they are. The original decoder counts its
    residual blocks and upsamplers in one sequence, `num_res_blocks + 1` and then one, a stage.
    """
    if not any(name.startswith("decoder.upsamples.") for name in tensors):
        return dict(tensors)
    resamplers = [
        int(match[1])
        for match in (re.match(r"decoder\.upsamples\.(\d+)\.resample\.", n) for n in tensors)
        if match
    ]
    stage_length = min(resamplers, default=3) + 1
    return {_diffusers_name(name, stage_length): value for name, value in tensors.items()}


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
    match = re.match(r"decoder\.upsamples\.(\d+)\.(.*)", name)
    if match:
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
        parts = []
        if missing:
            parts.append(f"{len(missing)} tensors missing ({_some(missing)})")
        if extra:
            parts.append(f"{len(extra)} tensors that the model does not have ({_some(extra)})")
        raise ModelError(f"{where}: {' and '.join(parts)}")
    wrong = [
        f"{name}: found {shape}, expected {expected[name]}"
        for name, shape in sorted(shapes.items())
        if shape != expected[name]
    ]
    if wrong:
        raise ModelError(
            f"{where}: {len(wrong)} tensors have another shape ({_some(wrong)})",
            fix="The configuration and the weights are of different models.",
        )


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _SHOWN
    return "; ".join(names[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def hash_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names.

    Taken of the fp32 weights as used, so the same weights hash alike from any file or key naming.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
