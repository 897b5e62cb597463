"""`load_model`: what a `--model` argument names, as a checked fp32 VAE."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError
from qvae_trt.model import hub
from qvae_trt.model.config import CONFIG_NAME, infer_config, read_config
from qvae_trt.model.files import PICKLES, weight_files
from qvae_trt.model.seeded import empty_vae, random_vae
from qvae_trt.model.weights import (
    as_fp32,
    check_fit,
    diffusers_names,
    hash_tensors,
    read_headers,
    read_tensors,
    shown,
    zero_layers,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from diffusers import AutoencoderKLQwenImage
    from torch import Tensor

    from qvae_trt.model.config import Config
    from qvae_trt.model.weights import Headers

DEFAULT_MODEL = "Qwen/Qwen-Image"
BUNDLED_TINY = "bundled:tiny"
RANDOM_FULL = "random:full"
RANDOM_FULL_RGBA = "random:full-rgba"
OFFLINE_CHOICES = (
    f"Without the hub: --model {BUNDLED_TINY} (small, trained), --model {RANDOM_FULL} (full size, "
    "to measure speed), or a local folder or .safetensors file of the VAE."
)
_BUILT_IN = {RANDOM_FULL: 3, RANDOM_FULL_RGBA: 4}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded VAE.

    Attributes:
        vae: fp32, CPU, eval, no gradients.
        source: the `--model` argument that named it.
        weights_sha256: of names, dtypes, shapes and bytes of the fp32 weights.
    """

    vae: AutoencoderKLQwenImage
    source: str
    weights_sha256: str

    @property
    def input_channels(self) -> int:
        """3 (RGB) or 4 (RGBA, the Layered VAE)."""
        return int(self.vae.config.input_channels)

    @property
    def z_dim(self) -> int:
        return int(self.vae.config.z_dim)


def load_model(source: str) -> Model:
    """Load a VAE.

    Args:
        source: `bundled:tiny`, `random:full`, `random:full-rgba`, the path of a `.safetensors` file
            or of a folder (a pipeline's, with `vae/` in it, or the VAE's own), or a hub id. A path
            that exists comes before a hub id.

    Raises:
        ModelError: nothing there, another class, damaged or foreign weights, or no answer from the
            hub.
    """
    if source == BUNDLED_TINY:
        vae = _load_folder(Path(__file__).resolve().parent.parent / "data" / "tiny")
    elif source in _BUILT_IN:
        vae = random_vae({"input_channels": _BUILT_IN[source]})
    else:
        vae = _load_elsewhere(source)
    return Model(vae, source, hash_tensors(vae.state_dict().items()))


def model_of_tensors(tensors: Mapping[str, Tensor], *, where: str) -> Model:
    """The VAE of tensors that another program has loaded, in diffusers' names or the original ones.

    Args:
        tensors: on any device, of any floating dtype; they are copied.
        where: what messages call them.

    Raises:
        ModelError: not the weights of a VAE of this family.
    """
    own = diffusers_names(tensors, where=where)
    named = {name: as_fp32(tensors[key].cpu(), key, where) for key, name in own.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    vae = empty_vae(infer_config(shapes, where=where))
    check_fit(vae, shapes, where=where)
    vae.load_state_dict({name: tensor.clone() for name, tensor in named.items()}, assign=True)
    return Model(vae.eval().requires_grad_(False), "", hash_tensors(named.items()))


def _load_elsewhere(source: str) -> AutoencoderKLQwenImage:
    path = _existing(source)
    if path is not None:
        return _load_folder(path) if path.is_dir() else _load_file(path)
    if source.startswith(("bundled:", "random:")):
        raise ModelError(f"{source!r}: no such built-in model", fix=OFFLINE_CHOICES)
    if Path(source).suffix in (".safetensors", *PICKLES):
        raise ModelError(f"{source}: no such file", fix=OFFLINE_CHOICES)
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ModelError(
            f"{source!r}: no such file or folder, and not a hub id (owner/name)",
            fix=OFFLINE_CHOICES,
        )
    return _load_folder(hub.fetch(source, offline_choices=OFFLINE_CHOICES))


def _existing(source: str) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL
        return None


def _load_folder(folder: Path) -> AutoencoderKLQwenImage:
    try:
        homes = [home for home in (folder / "vae", folder) if (home / CONFIG_NAME).is_file()]
        weights = weight_files(homes[0], offline_choices=OFFLINE_CHOICES) if homes else []
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    if not homes:
        raise ModelError(
            f"{folder}: is not a VAE's folder: expected {CONFIG_NAME} in it, or in its vae/",
            fix="Name the folder of a diffusers pipeline or of its VAE. " + OFFLINE_CHOICES,
        )
    config = read_config(homes[0] / CONFIG_NAME)
    return _assemble(config, read_headers(weights, where=str(homes[0])), where=homes[0])


def _load_file(path: Path) -> AutoencoderKLQwenImage:
    if path.suffix != ".safetensors":
        reason = ": pickles run code" if path.suffix in PICKLES else ""
        raise ModelError(
            f"{path}: expected a .safetensors file or a folder{reason}", fix=OFFLINE_CHOICES
        )
    headers = read_headers([path], where=str(path))
    inferred = infer_config(headers.shapes, where=str(path))
    return _assemble(inferred | _latent_statistics(path, inferred), headers, where=path)


def _assemble(config: Config, headers: Headers, *, where: Path) -> AutoencoderKLQwenImage:
    vae = empty_vae(config)
    check_fit(vae, headers.shapes, where=str(where))
    tensors = read_tensors(headers)
    vae.load_state_dict(tensors, strict=True, assign=True)
    if zeros := zero_layers(tensors):
        warnings.warn(
            f"{where}: {shown(zeros)}: only zeros, where no other path leads around: "
            "what comes out is the same for any input",
            stacklevel=2,
        )
    return vae.eval().requires_grad_(False)


def _latent_statistics(path: Path, inferred: Config) -> Config:
    """`latents_mean` and `latents_std` of this model's config.json, if that is beside the file."""
    beside = path.with_name(CONFIG_NAME)
    if not beside.is_file():
        return {}
    try:
        config = read_config(beside)
    except ModelError:
        return {}  # another model's: what the file needs is in its shapes
    if any(config.get(name, value) != value for name, value in inferred.items()):
        return {}
    return {name: config[name] for name in ("latents_mean", "latents_std") if name in config}
