"""The configuration of a VAE: from JSON, or inferred from tensor shapes."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from qvae_trt.errors import ModelError, printable
from qvae_trt.files.json_file import Table, read_object
from qvae_trt.kinds import KINDS, QWEN_IMAGE, QWEN_IMAGE_21, Kind, kind_named

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Shape = tuple[int, ...]
    #: Arguments of the class's constructor.
    Config = dict[str, object]

CLASS_NAMES = " or ".join(kind.class_name for kind in KINDS)
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
_OTHER_CLASSES = {"AutoencoderKLWan": "it decodes videos, and only single frames are built here"}


def read_config(path: Path) -> tuple[Kind, Config]:
    """The kind and the checked configuration in this `config.json`.

    Raises:
        ModelError: it cannot be read, or is of another class.
    """
    table = read_object(path, most_bytes=MAX_JSON_BYTES, fault=ModelError)
    return check_config(table.data, where=str(path))


def check_config(raw: object, *, where: str) -> tuple[Kind, Config]:
    """The kind, and its constructor's arguments in `raw`. Names that the class does not know are
    left out.
    """
    table = Table(raw, "", lambda why: ModelError(f"{where}: {why}"))
    raw = table.data
    found = raw.get("_class_name")
    kind = kind_named(found)
    if kind is None:
        reason = _OTHER_CLASSES.get(str(found), "it is not a VAE of the Qwen-Image family")
        named = printable(str(found), lines=False)
        raise ModelError(f"{where}: found class {named}, expected {CLASS_NAMES}: {reason}")
    config: Config = {}
    for name, (low, high) in kind.integers.items():
        if raw.get(name) is not None:
            config[name] = table.integer(name, least=low, most=high)
    for name in kind.colours:
        if name in raw:
            config[name] = table.integer(name, least=3, most=4)
    if len({config.get(name, kind.default_colours) for name in kind.colours}) > 1:
        named = " and ".join(kind.colours)
        raise ModelError(f"{where}: expected the same number of channels as {named}")
    for name in kind.flags:
        if name in raw:
            config[name] = table.flag(name)
    if "dim_mult" in raw:
        widths = table.items("dim_mult", kind.stages)
        config["dim_mult"] = [widths.integer(n, least=1, most=64) for n in widths.data]
    if "temperal_downsample" in raw:
        flags = table.items("temperal_downsample", kind.stages - 1)
        config["temperal_downsample"] = [flags.flag(n) for n in flags.data]
    for name, expected in kind.fixed.items():
        if raw.get(name) not in (None, expected):
            raise ModelError(
                f"{where}: {name}: expected {expected}, as {kind.name} has it, found {raw[name]}"
            )
    z_dim = table.integer("z_dim") if "z_dim" in raw else kind.z_dim
    for name, neutral in (("latents_mean", 0.0), ("latents_std", 1.0)):
        if name in raw:
            values = table.items(name, z_dim)
            config[name] = [
                values.positive(n) if name == "latents_std" else values.number(n, least=-math.inf)
                for n in values.data
            ]
        elif z_dim != kind.z_dim:  # the class's own default has that many
            config[name] = [neutral] * z_dim
    return kind, config


def infer_config(shapes: Mapping[str, Shape], *, where: str) -> tuple[Kind, Config]:
    """The configuration whose model has these tensors (diffusers names); ModelError if none has."""
    kind = QWEN_IMAGE
    if len(shapes.get("encoder.conv_in.weight", ())) == 4:  # no axis of time
        kind = QWEN_IMAGE_21
    ndim = 5 if kind is QWEN_IMAGE else 4
    _shape(shapes, "encoder.conv_in.weight", ndim, where)
    z_dim = _shape(shapes, "post_quant_conv.weight", ndim, where)[0]
    if z_dim != kind.z_dim:
        raise ModelError(
            f"{where}: found {z_dim} latent channels, expected {kind.z_dim}: not a VAE of this"
            " family",
            fix=f"If it is an {kind.class_name}, name the folder that holds its {CONFIG_NAME}.",
        )
    raw = _INFERRED[kind.name](shapes, ndim, where)
    raw |= {"_class_name": kind.class_name, "z_dim": z_dim}
    return check_config(raw, where=f"{where} (from its tensors' shapes)")


def _flat(shapes: Mapping[str, Shape], ndim: int, where: str) -> Config:
    """Of Qwen-Image, whose encoder is one list of blocks."""
    conv_in = _shape(shapes, "encoder.conv_in.weight", ndim, where)
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
            width = _shape(shapes, f"{prefix}.conv1.weight", ndim, where)[0]
    widths.append(width)
    base_dim = conv_in[0]
    return {
        "base_dim": base_dim,
        "dim_mult": [n // max(base_dim, 1) for n in widths],
        "num_res_blocks": len(resnets) - 1,
        "temperal_downsample": temporal,
        "input_channels": conv_in[1],
    }


def _levels(shapes: Mapping[str, Shape], ndim: int, where: str) -> Config:
    """Of Qwen-Image-2.1, whose encoder is a list of levels."""
    base_dim, colours = _shape(shapes, "encoder.conv_in.weight", ndim, where)[:2]
    levels = sorted({int(m[1]) for m in _matches(r"encoder\.down_blocks\.(\d+)\.", shapes)})
    resnets = {m[1] for m in _matches(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", shapes)}
    prefixes = [f"encoder.down_blocks.{level}" for level in levels]
    widths = [
        _shape(shapes, f"{prefix}.resnets.0.conv1.weight", ndim, where)[0] for prefix in prefixes
    ]
    multiples = [width // base_dim for width in widths]
    decoder_width = _shape(shapes, "decoder.conv_out.weight", ndim, where)[1]
    return {
        "base_dim": base_dim,
        "decoder_base_dim": decoder_width // max(1, *multiples[:1]),
        "dim_mult": multiples,
        "num_res_blocks": len(resnets),
        "temperal_downsample": [
            f"{prefix}.downsampler.time_conv.weight" in shapes for prefix in prefixes[:-1]
        ],
        "in_channels": colours,
        "out_channels": _shape(shapes, "decoder.conv_out.weight", ndim, where)[0],
    }


#: How the rest of a configuration is inferred, by the name of the kind.
_INFERRED = {QWEN_IMAGE.name: _flat, QWEN_IMAGE_21.name: _levels}


def _matches(pattern: str, names: Mapping[str, Shape]) -> list[re.Match[str]]:
    found = re.compile(pattern)
    return [match for match in map(found.match, names) if match]


def _shape(shapes: Mapping[str, Shape], name: str, ndim: int, where: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(
            f"{where}: has no tensor {name}, which every such VAE has", fix=KNOWN_LAYOUTS
        )
    if len(shape) != ndim or 0 in shape:
        raise ModelError(f"{where}: {name}: found shape {shape}, expected {ndim} dimensions")
    return shape
