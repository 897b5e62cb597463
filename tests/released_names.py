"""Names of tensors in the checkpoints of the releases, from those of diffusers."""

from __future__ import annotations

import re


def original_name(name: str) -> str:
    """The release's name of a tensor with two residual blocks a stage."""
    match = re.match(r"decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.(.*)", name)
    if match:
        place = int(match[1]) * 4 + (3 if match[2] == "upsamplers" else int(match[3]))
        name = f"decoder.upsamples.{place}.{match[4]}"
    if name.startswith(("quant_conv", "post_quant_conv")):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    name = name.replace("mid_block.resnets.0", "middle.0").replace(
        "mid_block.resnets.1", "middle.2"
    )
    name = name.replace("mid_block.attentions.0", "middle.1").replace("down_blocks", "downsamples")
    name = (
        name.replace("norm_out", "head.0").replace("conv_out", "head.2").replace("conv_in", "conv1")
    )
    in_block = "downsamples" in name or "upsamples" in name or ".middle." in name
    for new, old in (("norm1", "0"), ("conv1", "2"), ("norm2", "3"), ("conv2", "6")):
        if in_block:
            name = name.replace(f".{new}.", f".residual.{old}.")
    return name.replace("conv_shortcut", "shortcut")


def original_name_21(name: str) -> str:
    """As the original release names the tensors of such a VAE: levels of one block, and more."""
    match = re.fullmatch(
        r"(encoder|decoder)\.(down|up)_blocks\.(\d)\.(resnets\.\d|\w+sampler)\.(.*)", name
    )
    if match is None:
        return original_name(name)
    half, way, level, member, rest = match.groups()
    blocks = 1 if way == "down" else 2
    place = blocks if member.endswith("sampler") else int(member[-1])
    inner = original_name(f"encoder.down_blocks.{rest}").removeprefix("encoder.downsamples.")
    return f"{half}.{way}samples.{level}.{way}samples.{place}.{inner}"
