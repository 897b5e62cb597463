"""Attention over all pixels without N x N scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qvae_trt.folding.norm import RmsNorm
from qvae_trt.folding.weights import linear, tensor_of
from qvae_trt.lowerings import Lowering

#: Elements of fp16 in 16 bytes.
_ALIGNMENT = 8
#: Scale of the values in :func:`with_ones`: exact, and 57,600 of them still sum up in fp16.
_VALUE_SCALE = 2.0**-8
#: Of so many tokens one is taken where their mean need not be exact.
_SAMPLE = 61


class Attention(nn.Module):
    """One head over all pixels, plus the identity. (B, C, H, W) → the same."""

    def __init__(self, block: nn.Module, lowering: Lowering) -> None:
        super().__init__()
        self.norm = RmsNorm(tensor_of(block, "norm.gamma"), form=lowering.norm, silu=False)
        channels = self.norm.gamma.numel()
        weights = tensor_of(block, "to_qkv.weight").reshape(3, channels, channels).clone()
        biases = tensor_of(block, "to_qkv.bias").reshape(3, channels).clone()
        if lowering.attention != "fused":
            weights[0] /= math.sqrt(channels)
            biases[0] /= math.sqrt(channels)
        self.query, self.key = linear(weights[0], biases[0]), linear(weights[1], biases[1])
        to_value = with_ones if lowering.attention == "exp" else linear
        self.value = to_value(weights[2], biases[2])
        self.proj = linear(
            tensor_of(block, "proj.weight").flatten(1), tensor_of(block, "proj.bias")
        )
        self.lowering = lowering

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        chunks = self.lowering.attention_chunks
        if self.lowering.attention == "fused":
            heads = (tensor[:, None] for tensor in (query, key, value))
            mixed = F.scaled_dot_product_attention(*heads)[:, 0]
        elif self.lowering.attention == "softmax":
            mixed = attend(query, key, value, chunks)
        else:
            mixed = attend_by_exp(query, key, value, chunks)
        y = self.proj(mixed).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + y


def attend(query: Tensor, key: Tensor, value: Tensor, chunks: int) -> Tensor:
    """softmax(query @ key.T) @ value in `chunks` runs of queries.

    Args:
        query: (B, N, C), already scaled by 1 / sqrt(C).
        key, value: (B, N, C).
        chunks: how many runs, where N is as much.

    Returns:
        (B, N, C).

    What is summed is how values differ from their mean. Kernels that add up in fp16 lose small
    terms beside a large sum: emulated, 57,600 keys cost 7 % of the result, centred 0.2 %.
    """
    centre = _mean(value)
    transposed, centred = key.transpose(1, 2), value - centre

    def mix(run: Tensor) -> Tensor:
        return torch.softmax(run @ transposed, dim=-1) @ centred

    return _in_turn(query, chunks, mix) + centre


def with_ones(weight: Tensor, bias: Tensor) -> nn.Linear:
    """The projection to the values of :func:`attend_by_exp`: (C, C), (C,) → C to C + 8 channels.

    All are scaled by 2**-8. Of the eight more, as many for rows of whole 16-byte units, the first
    is the scale itself and the others are 0.
    """
    channels = weight.shape[1]
    ones = bias.new_tensor([1.0] + [0.0] * (_ALIGNMENT - 1))
    return linear(
        torch.cat([weight, weight.new_zeros(_ALIGNMENT, channels)]) * _VALUE_SCALE,
        torch.cat([bias, ones]) * _VALUE_SCALE,
    )


def attend_by_exp(query: Tensor, key: Tensor, value: Tensor, chunks: int) -> Tensor:
    """The same as :func:`attend`, with kernels that TensorRT 8.6 has.

    Its softmax kernel reaches a fifth of the memory bandwidth. Here a row maximum, one exponential
    and the second product do the work: a column of ones beside the values makes the product give
    the denominators too. Numerators and denominators carry the scale, which keeps sums of up to
    57,600 terms inside fp16, and their quotient does not.

    What is summed is how values differ from a centre. The result is exact whatever the centre is,
    so it is the mean of every 61st value: in TensorRT 8.6 on an H100 the mean of all takes 3 of 9
    ms at 27,744 tokens, this one less than 0.1 (benchmarks/h100/attention_forms.json).
    benchmarks/fp16_sums.json has the errors with it and without.

    Args:
        query, key: (B, N, C), the query already scaled by 1 / sqrt(C).
        value: (B, N, C + 8), as :func:`with_ones` makes them.
        chunks: as in :func:`attend`.
    """
    channels = query.shape[2]
    centre = value[:, ::_SAMPLE].mean(dim=1, keepdim=True)
    offset = torch.cat([centre[..., :channels], torch.zeros_like(centre[..., channels:])], dim=2)
    mixed = _mix_by_exp(query, key, value - offset, chunks)
    return mixed + centre[..., :channels] / _VALUE_SCALE


def _mix_by_exp(query: Tensor, key: Tensor, value: Tensor, chunks: int) -> Tensor:
    channels = query.shape[2]
    key, value = _align_tokens(key, value)
    transposed = key.transpose(1, 2)

    def mix(run: Tensor) -> Tensor:
        scores = run @ transposed
        sums = torch.exp(scores - scores.amax(dim=-1, keepdim=True)) @ value
        return sums[..., :channels] / sums[..., channels : channels + 1]

    return _in_turn(query, chunks, mix)


def _mean(value: Tensor) -> Tensor:
    """Over the tokens, in float32: the sum of 57,600 values of 1.2 is past what fp16 holds."""
    return value.float().mean(dim=1, keepdim=True).to(value.dtype)


def _in_turn(query: Tensor, chunks: int, mix: Callable[[Tensor], Tensor]) -> Tensor:
    """`mix` of one run of queries after the other, joined. (B, N, C) → (B, N, C).

    With ranges, memory is planned for the largest size: at 48,128 tokens TensorRT 8.6 plans 2.2 GB
    for this block with 7 runs and 1.2 with 14 (benchmarks/h100/attention_forms.json).
    """
    tokens = query.shape[1]
    of_one_size = type(tokens) is int
    mixed: list[Tensor] = []
    for run in _runs(query, chunks):
        if mixed:
            # Zeros made of the run before: else all scores are computed first, and held at once.
            # With ranges they are made of the whole run: TensorRT 8.6 copies a result once more
            # where a part is cut out of it.
            before = mixed[-1]
            if of_one_size:
                before = before.narrow(1, 0, 1).narrow(2, 0, 1)
            run = run + before.clamp(0.0, 0.0)
        mixed.append(mix(run))
    joined = torch.cat(mixed, dim=1)
    return joined if of_one_size else joined.narrow(1, 0, tokens)


def _runs(query: Tensor, chunks: int) -> list[Tensor]:
    """The queries in runs; where their number is known only at run time, with up to `chunks` more
    than there are: `Lowering.fewest_latents`.
    """
    tokens = query.shape[1]
    if type(tokens) is int:
        chunks = min(chunks, tokens)
        cuts = [tokens * index // chunks for index in range(chunks + 1)]
        return [query.narrow(1, start, stop - start) for start, stop in itertools.pairwise(cuts)]
    # All of one size: TensorRT shares no memory between runs whose sizes are different symbols.
    filled = _fill(query, (tokens // chunks + 1) * chunks, most=chunks)
    stacked = filled.reshape(chunks, -1, query.shape[2])  # an engine's batch is 1
    return [stacked.narrow(0, index, 1) for index in range(chunks)]


def _align_tokens(key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Pad keys and values to whole 16-byte rows of scores, as fast products need them.

    It repeats real keys, so that no row maximum changes; its values and denominators are 0. Without
    it TensorRT 8.6 takes 10.8 in place of 5.9 ms for 27,556 tokens.
    """
    tokens = key.shape[1]
    if type(tokens) is int and tokens % _ALIGNMENT == 0:
        return key, value
    whole = (tokens + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
    return _fill(key, whole, most=_ALIGNMENT), _fill(value, whole, most=_ALIGNMENT, zeros=True)


def _fill(tensor: Tensor, tokens: int, *, most: int, zeros: bool = False) -> Tensor:
    """(B, N, C) → (B, `tokens`, C), with the first tokens, or zeros, behind: at most `most` more.

    In a graph with ranges the result is cut out of a tensor that is longer by a constant. TensorRT
    bounds each term of a size by itself: a filling of `tokens - N` might be nearly as long as N,
    and memory is planned for that.
    """
    fixed = type(tokens) is int
    filling = tensor[:, : tokens - tensor.shape[1] if fixed else most]
    filled = torch.cat([tensor, torch.zeros_like(filling) if zeros else filling], dim=1)
    return filled if fixed else filled.narrow(1, 0, tokens)
