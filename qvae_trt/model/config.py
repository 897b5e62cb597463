"""The configuration of an AutoencoderKLQwenImage: from JSON, or inferred from tensor shapes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError, printable
from qvae_trt.files.json_file import Table, parse_object
from qvae_trt.files.reading import read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Shape = tuple[int, ...]
    #: Arguments of the class's constructor.
    Config = dict[str, object]

CLASS_NAME = "AutoencoderKLQwenImage"
CONFIG_NAME = "config.json"
#: Of a configuration and of a shard index; real ones have a few thousand.
MAX_JSON_BYTES = 1 << 24
#: What helps where tensors have other names than the VAE's.
KNOWN_LAYOUTS = (
    "Give the VAE's weights, not a transformer's, a text encoder's or another VAE's. Known names "
    "of tensors: diffusers' (encoder.conv_in.weight), and the original release's, which ComfyUI "
    "has too (encoder.conv1.weight); one prefix, such as vae. or first_stage_model., may be first."
)
#: Of the classes that people hand over by mistake, why they cannot be taken.
_OTHER_CLASSES = {
    "AutoencoderKLQwenImage21": "it has another architecture (64 latent channels, 16x)",
    "AutoencoderKLWan": "it decodes videos, and only single frames are built here",
}
#: Inclusive ranges of the integers; they keep a damaged file from asking for terabytes.
_RANGES = {
    "base_dim": (1, 1024),
    "z_dim": (1, 256),
    "num_res_blocks": (1, 16),
    "input_channels": (3, 4),
}
_STAGES = 4


def read_config(path: Path) -> Config:
    """The checked configuration in this `config.json`; ModelError where it is not of CLASS_NAME."""
    raw = read_bytes(path, most_bytes=MAX_JSON_BYTES, fault=ModelError)
    table = parse_object(
        raw, most_bytes=MAX_JSON_BYTES, fault=lambda why: ModelError(f"{path}: {why}")
    )
    return check_config(table.data, where=str(path))


def check_config(raw: object, *, where: str) -> Config:
    """The constructor's arguments in `raw`. Names that the class does not know are left out."""
    table = Table(raw, "", lambda why: ModelError(f"{where}: {why}"))
    raw = table.data
    found = raw.get("_class_name")
    if found != CLASS_NAME:
        reason = _OTHER_CLASSES.get(str(found), "it is not a VAE of the Qwen-Image family")
        named = printable(str(found), lines=False)
        raise ModelError(f"{where}: found class {named}, expected {CLASS_NAME}: {reason}")
    config: Config = {}
    for name, (low, high) in _RANGES.items():
        if name in raw:
            config[name] = table.integer(name, least=low, most=high)
    if "dim_mult" in raw:
        widths = table.items("dim_mult", _STAGES)
        config["dim_mult"] = [widths.integer(n, least=1, most=64) for n in widths.data]
    if "temperal_downsample" in raw:
        flags = table.items("temperal_downsample", _STAGES - 1)
        config["temperal_downsample"] = [flags.flag(n) for n in flags.data]
    if raw.get("attn_scales"):
        raise ModelError(
            f"{where}: attn_scales: expected [], as Qwen-Image has it, found {raw['attn_scales']}"
        )
    z_dim = table.integer("z_dim") if "z_dim" in raw else 16
    for name, neutral in (("latents_mean", 0.0), ("latents_std", 1.0)):
        if name in raw:
            values = table.items(name, z_dim)
            config[name] = [
                values.positive(n) if name == "latents_std" else values.number(n, least=-math.inf)
                for n in values.data
            ]
        elif z_dim != 16:  # the class's own default has sixteen
            config[name] = [neutral] * z_dim
    return config


def infer_config(shapes: Mapping[str, Shape], *, where: str) -> Config:
    """The configuration whose model has these tensors (diffusers names); ModelError if none has."""
    conv_in = _shape(shapes, "encoder.conv_in.weight", 5, where)
    z_dim = _shape(shapes, "post_quant_conv.weight", 5, where)[0]
    if z_dim != 16:
        raise ModelError(
            f"{where}: found {z_dim} latent channels, expected 16: not a VAE of this family",
            fix=f"If it is an {CLASS_NAME}, name the folder that holds its {CONFIG_NAME}.",
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
            fix=KNOWN_LAYOUTS,
        )
    if len(shape) != ndim or 0 in shape:
        raise ModelError(f"{where}: {name}: found shape {shape}, expected {ndim} dimensions")
    return shape
