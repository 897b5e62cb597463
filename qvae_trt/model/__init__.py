"""Weights of the Qwen-Image VAE, from every place that `--model` can name, as a checked fp32 VAE.

A hub id, a local folder (the pipeline's or the VAE's own), a single `.safetensors`, `bundled:tiny`,
`random:full` and the other random ones. Only safetensors are read: nothing here unpickles, and only
a hub id reaches for the network.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError
from qvae_trt.kinds import KINDS, QWEN_IMAGE, QWEN_IMAGE_21, Kind, kind_of
from qvae_trt.model import weights
from qvae_trt.model.config import CONFIG_NAME, Config, infer_config, read_config
from qvae_trt.model.files import OFFLINE_CHOICES, PICKLES, fetch, weight_files
from qvae_trt.model.seeded import empty_vae
from qvae_trt.model.seeded import random_vae as random_vae

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from diffusers import AutoencoderKLQwenImage
    from torch import Tensor

    from qvae_trt.profiles import Part, Resolution

DEFAULT_MODEL = QWEN_IMAGE.hub_id
BUNDLED_TINY = "bundled:tiny"
#: Architectures with seeded weights.
SEEDED: dict[str, tuple[Kind, Config]] = {
    "random:full": (QWEN_IMAGE, {"input_channels": 3}),
    "random:full-rgba": (QWEN_IMAGE, {"input_channels": 4}),
    "random:full-2.1": (QWEN_IMAGE_21, {}),
    "random:tiny-2.1": (QWEN_IMAGE_21, {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}),
}
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
    def kind(self) -> Kind:
        return kind_of(self.vae)

    @property
    def input_channels(self) -> int:
        """3 (RGB) or 4 (RGBA: the Layered VAE, and Qwen-Image-2.1)."""
        return int(self.vae.config[self.kind.colours[0]])

    @property
    def z_dim(self) -> int:
        return int(self.vae.config.z_dim)

    def shape(self, part: Part, size: Resolution) -> tuple[int, int, int, int, int]:
        """What a part takes for a picture of a size: (1, C, 1, H, W), or (1, z, 1, h, w) of
        latents.

        Raises:
            ResolutionError: the VAE does not take that size.
        """
        latents = self.kind.latents_of(size)
        if part == "encoder":
            return 1, self.input_channels, 1, size.height, size.width
        return 1, self.z_dim, 1, *latents


def half_of(vae: AutoencoderKLQwenImage, part: Part) -> Callable[[Tensor], Tensor]:
    """A half of diffusers' own VAE, from tensor to tensor: pixels → moments, latents → pixels."""
    if part == "encoder":
        return lambda x: vae.encode(x, return_dict=False)[0].parameters
    return lambda z: vae.decode(z, return_dict=False)[0]


def load_model(source: str) -> Model:
    """Load a VAE.

    Args:
        source: `bundled:tiny`, one of the random ones, the path of a `.safetensors` file or of a
            folder (a pipeline's, with `vae/` in it, or the VAE's own), or a hub id. A path
            that exists comes before a hub id.

    Raises:
        ModelError: nothing there, another class, damaged or foreign weights, or no answer from the
            hub.
    """
    found = _find(source)
    if found.headers is None:
        vae = random_vae(found.config, kind=found.kind)
    else:
        vae = _assemble(found, found.headers)
    return Model(vae, source, weights.hash_tensors(vae.state_dict().items()))


def model_of_tensors(tensors: Mapping[str, Tensor], *, where: str) -> Model:
    """The VAE of tensors that another program has loaded, in diffusers' names or the original ones.

    Args:
        tensors: on any device, of any floating dtype; they are copied.
        where: what messages call them.

    Raises:
        ModelError: not the weights of a VAE of this family.
    """
    own = weights.diffusers_names(tensors, where=where)
    named = {name: weights.as_fp32(tensors[key].cpu(), key, where) for key, name in own.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    kind, config = infer_config(shapes, where=where)
    vae = empty_vae(config, kind)
    weights.check_fit(vae, shapes, where=where)
    vae.load_state_dict({name: tensor.clone() for name, tensor in named.items()}, assign=True)
    return Model(vae.eval().requires_grad_(False), "", weights.hash_tensors(named.items()))


def find_kind(source: str) -> Kind:
    """The kind of what `load_model` takes, without its weights; without the hub for a hub id that
    is one kind's own.

    Raises:
        ModelError: as `load_model`.
    """
    known = {kind.hub_id: kind for kind in KINDS}
    if source in known and existing_path(source) is None:
        return known[source]
    return _find(source).kind


@dataclass(frozen=True, slots=True)
class _Found:
    """What a `--model` argument names, before its weights are read; seeded ones have no headers."""

    kind: Kind
    config: Config
    where: Path
    headers: weights.Headers | None


def _find(source: str) -> _Found:
    if source == BUNDLED_TINY:
        return _find_in_folder(Path(__file__).resolve().parent.parent / "data" / "tiny")
    if source in SEEDED:
        kind, config = SEEDED[source]
        return _Found(kind, config, Path(source), None)
    path = existing_path(source)
    if path is not None:
        return _find_in_folder(path) if path.is_dir() else _find_in_file(path)
    if source.startswith(("bundled:", "random:")):
        raise ModelError(f"{source!r}: no such built-in model", fix=OFFLINE_CHOICES)
    if Path(source).suffix in (".safetensors", *PICKLES):
        raise ModelError(f"{source}: no such file", fix=OFFLINE_CHOICES)
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise ModelError(
            f"{source!r}: no such file or folder, and not a hub id (owner/name)",
            fix=OFFLINE_CHOICES,
        )
    return _find_in_folder(fetch(source))


def existing_path(source: str) -> Path | None:
    """The file or folder that a `--model` argument names; None for any other."""
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL
        return None


def _find_in_folder(folder: Path) -> _Found:
    try:
        homes = [home for home in (folder / "vae", folder) if (home / CONFIG_NAME).is_file()]
        files = weight_files(homes[0]) if homes else []
    except OSError as error:
        raise ModelError(f"{folder}: cannot be read: {error.strerror}") from error
    if not homes:
        raise ModelError(
            f"{folder}: is not a VAE's folder: expected {CONFIG_NAME} in it, or in its vae/",
            fix="Name the folder of a diffusers pipeline or of its VAE. " + OFFLINE_CHOICES,
        )
    kind, config = read_config(homes[0] / CONFIG_NAME)
    return _Found(kind, config, homes[0], weights.read_headers(files, where=str(homes[0])))


def _find_in_file(path: Path) -> _Found:
    if path.suffix != ".safetensors":
        reason = ": pickles run code" if path.suffix in PICKLES else ""
        raise ModelError(
            f"{path}: expected a .safetensors file or a folder{reason}", fix=OFFLINE_CHOICES
        )
    headers = weights.read_headers([path], where=str(path))
    kind, inferred = infer_config(headers.shapes, where=str(path))
    config = inferred | _latent_statistics(path, kind, inferred)
    return _Found(kind, config, path, headers)


def _assemble(found: _Found, headers: weights.Headers) -> AutoencoderKLQwenImage:
    where = found.where
    vae = empty_vae(found.config, found.kind)
    weights.check_fit(vae, headers.shapes, where=str(where))
    tensors = weights.read_tensors(headers)
    vae.load_state_dict(tensors, strict=True, assign=True)
    if zeros := weights.zero_layers(tensors):
        warnings.warn(
            f"{where}: {weights.shown(zeros)}: only zeros, where no other path leads around: "
            "what comes out is the same for any input",
            stacklevel=2,
        )
    return vae.eval().requires_grad_(False)


def _latent_statistics(path: Path, kind: Kind, inferred: Config) -> Config:
    """`latents_mean` and `latents_std` of this model's config.json, if that is beside the file."""
    beside = path.with_name(CONFIG_NAME)
    if not beside.is_file():
        return {}
    try:
        found, config = read_config(beside)
    except ModelError:
        return {}  # another model's: what the file needs is in its shapes
    if found != kind or any(config.get(name, value) != value for name, value in inferred.items()):
        return {}
    return {name: config[name] for name in ("latents_mean", "latents_std") if name in config}
