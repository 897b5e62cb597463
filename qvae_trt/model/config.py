"""The configuration of an AutoencoderKLQwenImage: from JSON, or inferred from tensor shapes."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Shape = tuple[int, ...]
    #: Arguments of the class's constructor.
    Config = dict[str, object]

CLASS_NAME = "AutoencoderKLQwenImage"
CONFIG_NAME = "config.json"
#: Of the classes that people hand over by mistake, why they cannot be taken.
_OTHER_CLASSES = {
    "AutoencoderKLQwenImage21": "it has another architecture (64 latent channels, 16x)",
    "AutoencoderKLWan": "it decodes videos, and only single frames are built here",
}
#: Inclusive ranges of the integers; they keep a damaged file from asking for terabytes.
_RANGES = {"base_dim": (1, 1024), "z_dim": (1, 256), "num_res_blocks": (1, 16)}
_STAGES = 4


def read_config(path: Path) -> Config:
    """The checked configuration in this `config.json`; ModelError where it is not of CLASS_NAME."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    return check_config(raw, where=str(path))


def check_config(raw: object, *, where: str) -> Config:
    """The constructor's arguments in `raw`. Names that the class does not know are left out."""
    if not isinstance(raw, dict):
        raise ModelError(f"{where}: expected a JSON object, found {type(raw).__name__}")
    found = raw.get("_class_name")
    if found != CLASS_NAME:
        reason = _OTHER_CLASSES.get(str(found), "it is no VAE of the Qwen-Image family")
        raise ModelError(f"{where}: found class {found}, expected {CLASS_NAME}: {reason}")
    config: Config = {}
    for name, (low, high) in _RANGES.items():
        if name in raw:
            config[name] = _integer(raw[name], name, low, high, where)
    if "input_channels" in raw:
        config["input_channels"] = _integer(raw["input_channels"], "input_channels", 3, 4, where)
    if "dim_mult" in raw:
        mult = _list(raw["dim_mult"], "dim_mult", _STAGES, where)
        config["dim_mult"] = [_integer(n, "dim_mult", 1, 64, where) for n in mult]
    if "temperal_downsample" in raw:
        flags = _list(raw["temperal_downsample"], "temperal_downsample", _STAGES - 1, where)
        if not all(isinstance(flag, bool) for flag in flags):
            raise ModelError(f"{where}: temperal_downsample: expected booleans, found {flags}")
        config["temperal_downsample"] = flags
    if raw.get("attn_scales"):
        raise ModelError(
            f"{where}: attn_scales: expected [], as Qwen-Image has it, found {raw['attn_scales']}"
        )
    z_dim = config.get("z_dim", 16)
    if not isinstance(z_dim, int):  # narrows the type; _integer has seen to it
        raise ModelError(f"{where}: z_dim: expected an integer, found {z_dim!r}")
    for name, neutral in (("latents_mean", 0.0), ("latents_std", 1.0)):
        if name in raw:
            values = [_number(n, name, where) for n in _list(raw[name], name, z_dim, where)]
            if name == "latents_std" and min(values) <= 0:
                raise ModelError(f"{where}: latents_std: expected positive numbers, found {values}")
            config[name] = values
        elif z_dim != 16:  # the class's own default has sixteen
            config[name] = [neutral] * z_dim
    return config


def infer_config(shapes: Mapping[str, Shape], *, where: str) -> Config:
    """The configuration whose model has these tensors (diffusers names); ModelError if none has."""
    conv_in = _shape(shapes, "encoder.conv_in.weight", 5, where)
    z_dim = _shape(shapes, "post_quant_conv.weight", 5, where)[0]
    if z_dim != 16:
        raise ModelError(
            f"{where}: found {z_dim} latent channels, expected 16: no VAE of this family",
            fix=f"If it is an {CLASS_NAME} all the same, name the folder with its {CONFIG_NAME}.",
        )
    resnets = {m[1] for m in _matches(r"decoder\.up_blocks\.0\.resnets\.(\d+)\.", shapes)}
    blocks = sorted({int(m[1]) for m in _matches(r"encoder\.down_blocks\.(\d+)\.", shapes)})
    widths: list[int] = []
    temporal: list[bool] = []
    width = conv_in[0]
    for block in blocks:
        prefix = f"encoder.down_blocks.{block}"
        if f"{prefix}.resample.1.weight" in shapes:
            widths.append(width)
            temporal.append(f"{prefix}.time_conv.weight" in shapes)
        else:
            width = _shape(shapes, f"{prefix}.conv1.weight", 5, where)[0]
    widths.append(width)
    base_dim = conv_in[0]
    raw: Config = {
        "_class_name": CLASS_NAME,
        "base_dim": base_dim,
        "z_dim": z_dim,
        "dim_mult": [n // max(base_dim, 1) for n in widths],
        "num_res_blocks": len(resnets) - 1,
        "temperal_downsample": temporal,
        "input_channels": conv_in[1],
    }
    return check_config(raw, where=f"{where} (from its tensors' shapes)")


def _matches(pattern: str, names: Mapping[str, Shape]) -> list[re.Match[str]]:
    found = re.compile(pattern)
    return [match for match in map(found.match, names) if match]


def _shape(shapes: Mapping[str, Shape], name: str, ndim: int, where: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(
            f"{where}: has no tensor {name}, which every {CLASS_NAME} has",
            fix="Give the VAE's weights, not a transformer's, a text encoder's or another VAE's.",
        )
    if len(shape) != ndim or 0 in shape:
        raise ModelError(f"{where}: {name}: found shape {shape}, expected {ndim} dimensions")
    return shape


def _integer(value: object, name: str, low: int, high: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ModelError(f"{where}: {name}: expected an integer {low} to {high}, found {value!r}")
    return value


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ModelError(f"{where}: {name}: expected finite numbers, found {value!r}")
    return float(value)


def _list(value: object, name: str, length: int, where: str) -> list[object]:
    if not isinstance(value, list) or len(value) != length:
        found = f"{len(value)} values" if isinstance(value, list) else repr(value)
        raise ModelError(f"{where}: {name}: expected a list of {length}, found {found}")
    return value
