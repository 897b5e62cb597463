"""Qwen-Image pipelines with small random components: seconds on a CPU, nothing downloaded."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageTransformer2DModel,
)

HIDDEN = 16
_ROPE: dict[str, Any] = {"axes_dims_rope": (4, 6, 6), "attention_head_dim": 16}


@lru_cache(maxsize=2)
def transformer(*, layered: bool = False) -> QwenImageTransformer2DModel:
    torch.manual_seed(0)
    return QwenImageTransformer2DModel(
        num_layers=1,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        use_additional_t_cond=layered,
        use_layer3d_rope=layered,
        **_ROPE,
    ).eval()


@lru_cache(maxsize=2)
def controlnet(*, inpaint: bool = False) -> QwenImageControlNetModel:
    torch.manual_seed(1)
    net = QwenImageControlNetModel(
        num_layers=1,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN,
        extra_condition_channels=4 if inpaint else 0,
        **_ROPE,
    ).eval()
    for block in net.controlnet_blocks:  # zero at first: the control would not be felt
        torch.nn.init.normal_(block.weight, std=0.5)
    return net


@lru_cache(maxsize=1)
def transformer_21() -> QwenImage21Transformer2DModel:
    torch.manual_seed(0)
    return QwenImage21Transformer2DModel(
        num_layers=1, num_attention_heads=2, context_in_dim=HIDDEN, **_ROPE
    ).eval()


class Processor21:
    """What the pipeline of 2.1 asks of its processor before it is called."""

    tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *_args: Any, **_options: Any) -> list[list[int]]:
        return [[0]]


def prompt_of_picture(slots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the text encoder of 2.1 would have made of a prompt with a picture in it: embeddings,
    their mask, and which of them are the picture's.
    """
    embeds = prompt()["prompt_embeds"]
    seen = torch.randn((1, slots, HIDDEN), generator=torch.Generator().manual_seed(5))
    joined = torch.cat([embeds[:, :3], seen, embeds[:, 3:]], dim=1)
    there = torch.zeros(joined.shape[:2], dtype=torch.bool)
    there[:, 3 : 3 + slots] = True
    return joined, torch.ones(joined.shape[:2], dtype=torch.long), there


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02)


def prompt(*, seed: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """What a text encoder would have made of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_embeds": torch.randn((1, 5, HIDDEN), generator=generator).to(dtype),
        "prompt_embeds_mask": torch.ones((1, 5), dtype=torch.long),
    }


@lru_cache(maxsize=1)
def text_encoder() -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(3)
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1_000_000.0,
                "mrope_section": [1, 1, 2],
            },
            "vocab_size": 300,
            "max_position_embeddings": 2048,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
        },
        vocab_size=300,
    )
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def tokenizer(folder: Path) -> Any:
    """One token a byte, and the two that mark turns."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {letter: i for i, letter in enumerate(bytes_to_unicode().values())}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return Qwen2Tokenizer.from_pretrained(
        str(folder), additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
