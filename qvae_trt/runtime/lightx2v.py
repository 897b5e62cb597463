"""The VAE that a LightX2V runner calls, made from its configuration."""

from __future__ import annotations

import operator
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from qvae_trt.errors import UsageError
from qvae_trt.kinds import QWEN_IMAGE
from qvae_trt.lightx2v_loader import static_folders
from qvae_trt.model import load_model
from qvae_trt.profiles import Mode, Resolution
from qvae_trt.runtime.arguments import check_word, named_folder
from qvae_trt.runtime.engines import Engines
from qvae_trt.runtime.fallback import FallbackMode
from qvae_trt.runtime.image_processor import QvaeImageProcessor
from qvae_trt.runtime.ladder import Settings
from qvae_trt.runtime.vae import TrtVae

#: Two latents on each side make one token.
_PATCH = 2


class LightX2VVae:
    """What LightX2V's Qwen-Image runner calls: `encode_vae_image` and `decode`.

    Made by `from_lightx2v_config`. Mean and deviation of the latents are the VAE's own.

    Attributes:
        vae: the `TrtVae` that does the work.
    """

    def __init__(self, vae: TrtVae, *, layers: int | None, offload: bool) -> None:
        self.vae = vae
        self.image_processor = QvaeImageProcessor(vae_scale_factor=QWEN_IMAGE.scale * _PATCH)
        self.layers = layers
        self.offload = offload
        size = (1, vae.config.z_dim, 1, 1, 1)
        self._mean = torch.tensor(vae.config.latents_mean, dtype=torch.float32).view(size)
        self._std = torch.tensor(vae.config.latents_std, dtype=torch.float32).view(size)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    @property
    def device(self) -> torch.device:
        return self.vae.device

    @torch.no_grad()
    def encode_vae_image(self, image: torch.Tensor) -> torch.Tensor:
        """A picture as the tokens that condition the transformer.

        Args:
            image: (B, C, 1, H, W) or (B, C, H, W) in [-1, 1], sides multiples of 16; or latents
                (B, z, 1, h, w), which are only packed.

        Returns:
            (B, H/16 * W/16, 4z), normalised, in the VAE's dtype.
        """
        _require_tensor("image", image)
        x = image.unsqueeze(2) if image.ndim == 4 else image
        x = x.to(self.device)
        if x.ndim == 5 and x.shape[1] != self.vae.config.z_dim:
            mode = self.vae.encode(x, return_dict=False)[0].mode().float()
            self._place(mode.device)
            x = (mode - self._mean) / self._std
            self._rest()
        return pack(x.to(self.dtype))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, input_info: Any) -> Any:
        """Tokens as pictures.

        Args:
            latents: (B, N, 4z), normalised.
            input_info: has `auto_width` and `auto_height` in pixels, and perhaps
                `return_result_tensor`.

        Returns:
            B pictures: PIL images, or with `return_result_tensor` a tensor (B, C, H, W) in
            [0, 1]. Layered: for each of B a list (or tensor) of its layers, without the composite
            that comes first in the latents.
        """
        _require_tensor("latents", latents)
        size = _pixels(input_info, "auto_height"), _pixels(input_info, "auto_width")
        frames = 1 if self.layers is None else self.layers + 1
        z = unpack(latents.to(self.device), *size, frames=frames).float()
        if self.layers is not None:
            z = z[:, 1:]
        batch, kept = z.shape[:2]
        z = z.flatten(0, 1).unsqueeze(2)
        self._place(z.device)
        pixels = self.vae.decode(z * self._std + self._mean, return_dict=False)[0].squeeze(2)
        self._rest()
        kind = "pt" if getattr(input_info, "return_result_tensor", False) else "pil"
        pictures = self.image_processor.postprocess(pixels, output_type=kind)
        if self.layers is None:
            return pictures
        return [pictures[i * kept : (i + 1) * kept] for i in range(batch)]

    def _place(self, device: torch.device) -> None:
        self._mean, self._std = self._mean.to(device), self._std.to(device)

    def _rest(self) -> None:
        if self.offload:
            self.vae.release_memory(engines=False)


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, z, 1, h, w) → (B, h/2 * w/2, 4z): squares of 2x2 latents become tokens.

    Raises:
        UsageError: other dimensions, an odd side, or nothing in it.
    """
    shape = latents.shape
    if len(shape) != 5 or shape[2] != 1 or shape[3] % 2 or shape[4] % 2 or not latents.numel():
        raise UsageError(
            f"got latents of shape {tuple(latents.shape)}, expected (B, z, 1, h, w), h and w even",
            fix="pictures need sides that are multiples of 16",
        )
    squares = functional.pixel_unshuffle(latents[:, :, 0], _PATCH)
    return squares.flatten(2).transpose(1, 2).contiguous()


def unpack(tokens: torch.Tensor, height: int, width: int, *, frames: int = 1) -> torch.Tensor:
    """(B, frames * h/2 * w/2, 4z) → (B, frames, z, h, w), for a picture of height x width pixels.

    Raises:
        UsageError: that is not the number of tokens of such a picture.
    """
    high, wide = (side // (QWEN_IMAGE.scale * _PATCH) for side in (height, width))
    expected = frames * high * wide
    if tokens.ndim != 3 or tokens.shape[1] != expected or tokens.shape[2] % 4 or not expected:
        raise UsageError(
            f"got latents of shape {tuple(tokens.shape)}, expected (B, {expected}, 4z) for"
            f" {width}x{height} pixels" + (f" and {frames} frames" if frames > 1 else "")
        )
    shape = len(tokens), frames, high, wide, tokens.shape[2]
    squares = tokens.reshape(shape).movedim(-1, 2)
    return functional.pixel_shuffle(squares, _PATCH)


def from_lightx2v_config(
    config: Mapping[str, Any],
    *,
    fallback: FallbackMode = "warn",
    backend: str = "auto",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LightX2VVae:
    """The VAE of a LightX2V configuration, for a runner's `load_vae`.

    Args:
        config: reads `vae_type` ("tensorrt"), `trt_vae_config` with `trt_engine_path` (the folder
            `static` of `qvae build` or of `qvae lightx2v`, or with `multi_profile` the folder
            `profiles`), `vae_path` or `model_path` (the weights), `layered` and `layers`,
            `in_channels`, `vae_scale_factor`, `vae_cpu_offload` or `cpu_offload`, `use_tiling_vae`.
            A boolean may be the text "true" or "false". Which role of a disaggregated run it is
            (`disagg_mode`) makes no difference: only the half that is used is loaded.
        fallback, backend, device: as `load_vae`.
        dtype: of the latents given back; without one, what LightX2V's variable DTYPE says (BF16).

    Raises:
        UsageError: a value of another kind, or a VAE that is not TensorRT's.
        ModelError, BackendError: as `load_vae`.
    """
    if not isinstance(config, Mapping):
        raise UsageError(f"the configuration is a {type(config).__name__}, expected a mapping")
    kind = config.get("vae_type", "tensorrt")
    if kind != "tensorrt":
        raise UsageError(
            f"vae_type is {kind!r}, expected 'tensorrt'", fix="any other is LightX2V's own"
        )
    engine_config = _get(config, "trt_vae_config", Mapping, {})
    path = _get(engine_config, "trt_engine_path", (str, Path), "")
    mode: Mode = "profiles" if _get(engine_config, "multi_profile", bool, False) else "static"
    model_path = _get(config, "model_path", (str, Path), "")
    weights = _get(config, "vae_path", (str, Path), model_path and Path(model_path) / "vae")
    if not weights:
        raise UsageError(
            "neither vae_path nor model_path: expected the folder of the VAE's weights"
        )
    layered = _get(config, "layered", bool, False)
    layers = _get(config, "layers", int, 4)
    if layered and layers < 1:
        raise UsageError(f"layers is {layers}, expected 1 or more")
    _require(config, "vae_scale_factor", QWEN_IMAGE.scale)
    offload = _get(config, "vae_cpu_offload", bool, _get(config, "cpu_offload", bool, False))
    tiling = _get(config, "use_tiling_vae", bool, False)
    if _get(config, "vae_decode_parallel", bool, False):
        what = "vae_decode_parallel: every process decodes the whole picture"
        warnings.warn(f"set, and changes nothing: {what}", stacklevel=2)
    model = load_model(str(weights))
    if model.kind != QWEN_IMAGE:
        raise UsageError(
            f"{weights}: found the VAE of {model.kind.name}, expected that of {QWEN_IMAGE.name}:"
            " LightX2V has no TensorRT for the former"
        )
    _require(config, "in_channels", 4 * model.z_dim)
    folder = named_folder(path)
    engines = Engines(
        {mode: folder} if path else {},
        backend=backend,
        weights_sha256=model.weights_sha256,
        names=_their_names(folder) if path and mode == "static" else {},
    )
    settings = Settings(fallback=fallback)
    vae = TrtVae(model, engines, settings, device=device, dtype=dtype or _lightx2v_dtype())
    if tiling:
        vae.enable_tiling()
    return LightX2VVae(vae, layers=layers if layered else None, offload=offload)


def _their_names(folder: Path) -> dict[Resolution, str]:
    """Of the sizes whose folders have LightX2V's names, as `qvae lightx2v` makes them."""
    with suppress(OSError, ValueError):
        return {
            size: name
            for name, size in static_folders().items()
            if (folder / name).is_dir() and not (folder / str(size)).is_dir()
        }
    return {}


def _get(config: Mapping[str, Any], key: str, kind: Any, default: Any) -> Any:
    given = config.get(key)
    if given is None:
        return default
    value = _whole(given) if kind is int else given
    if kind is bool and str(given).lower() in ("true", "false"):  # as some configurations have it
        value = str(given).lower() == "true"
    if not isinstance(value, kind):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise UsageError(f"{key} is a {type(given).__name__}, expected {names}")
    return value


def _require(config: Mapping[str, Any], key: str, expected: int) -> None:
    found = _get(config, key, int, expected)
    if found != expected:
        raise UsageError(f"{key} is {found}, expected {expected} for this VAE")


def _whole(value: Any) -> int | None:
    """A whole number of any library, also one in a tensor of one element; None for all else."""
    if isinstance(value, bool):
        return None
    with suppress(TypeError, ValueError, RuntimeError):  # torch's for a tensor of several
        return operator.index(value)
    return None


def _pixels(input_info: Any, name: str) -> int:
    value = getattr(input_info, name, None)
    pixels = _whole(value)
    if pixels is None or pixels <= 0:
        raise UsageError(f"input_info.{name} is {value!r}, expected pixels")
    return pixels


def _require_tensor(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise UsageError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")


def _lightx2v_dtype() -> torch.dtype:
    dtypes = {"BF16": torch.bfloat16, "FP16": torch.float16, "FP32": torch.float32}
    name = os.environ.get("DTYPE", "BF16")
    check_word("DTYPE", name, tuple(dtypes))
    return dtypes[name]
