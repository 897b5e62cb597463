"""The configuration of a VAE: from JSON, or inferred from tensor shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from qvae_trt.errors import ModelError, printable
from qvae_trt.files.values import Value, read_object
from qvae_trt.kinds import KINDS, QWEN_IMAGE, QWEN_IMAGE_21, Kind, kind_named

Shape = tuple[int, ...]
#: Arguments of the class's constructor.
Config = dict[str, object]

CLASS_NAMES = " or ".join(kind.class_name for kind in KINDS)
CONFIG_NAME = "config.json"
#: What helps where tensors have other names than the VAE's.
KNOWN_LAYOUTS = (
    "Give the VAE's weights, not a transformer's, a text encoder's or another VAE's. Known names "
    "of tensors: diffusers' (encoder.conv_in.weight), and the original release's, which ComfyUI "
    "has too (encoder.conv1.weight); one prefix, such as vae. or first_stage_model., may be first."
)
_RESNET = re.compile(r"decoder\.up_blocks\.0\.resnets\.\d+\.conv1\.weight")
#: Of the classes that people hand over by mistake, why they cannot be taken.
_OTHER_CLASSES = {"AutoencoderKLWan": "it decodes videos, and only single frames are built here"}


def read_config(path: Path) -> tuple[Kind, Config]:
    """The kind and the checked configuration in this `config.json`.

    Raises:
        ModelError: it cannot be read, or is of another class.
    """
    return check_config(read_object(path, fault=ModelError))


def check_config(file: Value) -> tuple[Kind, Config]:
    """The kind, and its constructor's arguments in `file`. Names that the class does not know are
    left out.
    """
    raw = file.fields()
    found = file.data.get("_class_name")
    kind = kind_named(found)
    if kind is None:
        reason = _OTHER_CLASSES.get(str(found), "it is not a VAE of the Qwen-Image family")
        named = printable(str(found), lines=False)
        file.refuse(f"found class {named}, expected {CLASS_NAMES}: {reason}")
    readers: dict[str, Callable[[Value], object]] = {
        **{name: _up_to(most) for name, most in kind.most.items()},
        **dict.fromkeys(kind.flags, Value.flag),
        **dict.fromkeys(kind.colours, lambda value: value.integer(3, 4)),
        "dim_mult": lambda value: [item.integer(1, 64) for item in value.items(kind.stages)],
        "temperal_downsample": lambda value: [v.flag() for v in value.items(kind.stages - 1)],
    }
    values = {name: read(raw[name]) for name, read in readers.items() if name in raw}
    config: Config = {name: value for name, value in values.items() if value is not None}
    if len({config.get(name, kind.default_colours) for name in kind.colours}) > 1:
        file.refuse(f"expected the same number of channels as {' and '.join(kind.colours)}")
    for name, expected in kind.fixed.items():
        if file.data.get(name) not in (None, expected):
            found = f"{file.data[name]}"[:60]
            raw[name].refuse(f"expected {expected}, as {kind.name} has it, found {found}")
    z_dim = raw["z_dim"].integer() if "z_dim" in raw else kind.z_dim
    for name, neutral, read in (
        ("latents_mean", 0.0, Value.any_number),
        ("latents_std", 1.0, Value.positive),
    ):
        if name in raw:
            config[name] = [read(item) for item in raw[name].items(z_dim)]
        elif z_dim != kind.z_dim:  # the class's own default has that many
            config[name] = [neutral] * z_dim
    return kind, config


def _up_to(most: int) -> Callable[[Value], int | None]:
    return lambda value: None if value.data is None else value.integer(1, most)


def infer_config(shapes: Mapping[str, Shape], *, where: str) -> tuple[Kind, Config]:
    """The configuration whose model has these tensors (diffusers names); ModelError if none has."""
    kind, ndim = QWEN_IMAGE, 5
    if len(shapes.get("encoder.conv_in.weight", ())) == 4:  # no axis of time
        kind, ndim = QWEN_IMAGE_21, 4

    def shape(name: str) -> Shape:
        return _shape(shapes, name, ndim, where)

    base_dim, colours = shape("encoder.conv_in.weight")[:2]
    z_dim = shape("post_quant_conv.weight")[0]
    if z_dim != kind.z_dim:
        raise ModelError(
            f"{where}: found {z_dim} latent channels, expected {kind.z_dim}: not a VAE of this"
            " family",
            fix=f"If it is an {kind.class_name}, name the folder that holds its {CONFIG_NAME}.",
        )
    if kind is QWEN_IMAGE:
        decoder_base_dim, upsampler = base_dim, "upsamplers.0"
        own: Config = {"input_channels": colours}
    else:
        first = shape("encoder.down_blocks.0.resnets.0.conv1.weight")[0] // base_dim
        out_channels, width = shape("decoder.conv_out.weight")[:2]
        decoder_base_dim, upsampler = width // max(1, first), "upsampler"
        own = {"decoder_base_dim": decoder_base_dim}
        own |= {"in_channels": colours, "out_channels": out_channels}
    # The decoder has the stages of the encoder, the last one first.
    stages = [f"decoder.up_blocks.{stage}" for stage in reversed(range(kind.stages))]
    widths = [shape(f"{stage}.resnets.0.conv1.weight")[0] for stage in stages]
    raw = {
        "_class_name": kind.class_name,
        "z_dim": z_dim,
        "base_dim": base_dim,
        "dim_mult": [width // max(1, decoder_base_dim) for width in widths],
        "num_res_blocks": sum(_RESNET.fullmatch(name) is not None for name in shapes) - 1,
        "temperal_downsample": [f"{s}.{upsampler}.time_conv.weight" in shapes for s in stages[1:]],
    }
    what = f"{where} (from its tensors' shapes)"
    return check_config(Value(raw | own, lambda why: ModelError(f"{what}: {why}")))


def _shape(shapes: Mapping[str, Shape], name: str, ndim: int, where: str) -> Shape:
    shape = shapes.get(name)
    if shape is None:
        raise ModelError(
            f"{where}: has no tensor {name}, which every such VAE has", fix=KNOWN_LAYOUTS
        )
    if len(shape) != ndim or 0 in shape:
        raise ModelError(f"{where}: {name}: found shape {shape}, expected {ndim} dimensions")
    return shape
