"""Attention of one head over all pixels, without N x N scores in memory."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from qvae_trt.fused.launching import launch

#: Queries and keys of a block: with 64 keys, tiles and sums no longer fit the shared memory and
#: registers of a Hopper multiprocessor at 384 channels.
_QUERIES, KEYS, _WARPS, _STAGES = 128, 32, 8, 2
#: Compute capabilities with a bulk copy engine and shared memory for those blocks.
_CAPABILITIES = (9, 10)
_MOST_CHANNELS = 384
_MOST_SPLITS = 8
_JOINED_TOKENS = 16
#: Queries whose scores are held at once, where two products and a softmax do the work.
RUN = 4096


@triton.jit(do_not_specialize=["tokens", "split"])
def _attend_kernel(
    queries_low, queries_high, low, high, mixed_ptr, most_ptr, total_ptr, tokens, split, scale,
    C: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # 384 channels are 256 and 128: blocks are powers of two.
    block = tl.program_id(0) * QUERIES
    first = tl.program_id(1) * split
    query_low = queries_low.load([block, 0])
    query_high = queries_high.load([block, LOW])
    sum_low = tl.zeros([QUERIES, LOW], tl.float32)
    sum_high = tl.zeros([QUERIES, HIGH], tl.float32)
    most = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for key in tl.range(first, tl.minimum(first + split, tokens), KEYS, num_stages=STAGES):
        scores = tl.dot(query_low, low.load([key, C]).T)
        if HIGH > 1:
            scores = tl.dot(query_high, high.load([key, C + LOW]).T, scores)
        there = key + tl.arange(0, KEYS) < tokens
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        most_now = tl.maximum(most, tl.max(scores, 1))
        weights = tl.exp2(scores - most_now[:, None])
        fade = tl.exp2(most - most_now)
        most = most_now
        total = total * fade + tl.sum(weights, 1)
        weights = weights.to(mixed_ptr.dtype.element_ty)
        sum_low = tl.dot(weights, low.load([key, 2 * C]), sum_low * fade[:, None])
        if HIGH > 1:
            sum_high = tl.dot(weights, high.load([key, 2 * C + LOW]), sum_high * fade[:, None])
    query = block + tl.arange(0, QUERIES)
    there = query < tokens
    part = tl.program_id(1).to(tl.int64) * tokens
    at = (part + query)[:, None] * C
    kind = mixed_ptr.dtype.element_ty
    channel = tl.arange(0, LOW)[None, :]
    tl.store(mixed_ptr + at + channel, (sum_low / total[:, None]).to(kind), mask=there[:, None])
    if HIGH > 1:
        channel = LOW + tl.arange(0, HIGH)[None, :]
        y = (sum_high / total[:, None]).to(kind)
        tl.store(mixed_ptr + at + channel, y, mask=there[:, None])
    tl.store(most_ptr + part + query, most, mask=there)
    tl.store(total_ptr + part + query, total, mask=there)


@triton.jit(do_not_specialize=["tokens", "splits"])
def _join_kernel(
    mixed_ptr, most_ptr, total_ptr, out_ptr, tokens, splits,
    C: tl.constexpr, C_BLOCK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.arange(0, C_BLOCK)
    here = token < tokens
    inside = here[:, None] & (channel[None, :] < C)
    most = tl.load(most_ptr + token, mask=here, other=0.0)
    for split in tl.range(1, splits):
        most = tl.maximum(most, tl.load(most_ptr + split * tokens + token, mask=here, other=0.0))
    y = tl.zeros([BLOCK, C_BLOCK], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.range(0, splits):
        at = split * tokens + token
        weight = tl.exp2(tl.load(most_ptr + at, mask=here, other=0.0) - most)
        weight *= tl.load(total_ptr + at, mask=here, other=1.0)
        flat = at.to(tl.int64)[:, None] * C + channel[None, :]
        y += weight[:, None] * tl.load(mixed_ptr + flat, mask=inside, other=0.0).to(tl.float32)
        total += weight
    flat = token.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out_ptr + flat, (y / total[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def attend(qkv: Tensor) -> Tensor:
    """softmax(q @ k.T / sqrt(C)) @ v.

    Arithmetic: 4 N² C operations. Scores, maxima and sums are float32; weights are rounded to the
    tensors' dtype before the second product. This kernel takes up to 384 channels, the sum of two
    powers of two, and a GPU that copies tiles by itself (Hopper, and Blackwell's data-centre
    cards). More channels keep the products of libraries busy, by runs of queries; for the rest
    there is PyTorch's own attention.

    Args:
        qkv: (N, 3 C), contiguous: query, key and value of each token.

    Returns:
        (N, C), contiguous.
    """
    if qkv.shape[1] // 3 > _MOST_CHANNELS:
        return _attend_by_runs(qkv)
    if not _takes(qkv):
        query, key, value = (x[None, None] for x in qkv.chunk(3, dim=1))
        return F.scaled_dot_product_attention(query, key, value)[0, 0]
    return _attend(qkv, processors=_properties(qkv).multi_processor_count)


def _attend(qkv: Tensor, *, processors: int) -> Tensor:
    tokens, channels = qkv.shape[0], qkv.shape[1] // 3
    low, high = _halves(channels)
    blocks = triton.cdiv(tokens, _QUERIES)
    splits, split = plan_splits(tokens, processors)
    mixed = qkv.new_empty((splits, tokens, channels))
    most, total = (
        torch.empty((splits, tokens), dtype=torch.float32, device=qkv.device) for _ in range(2)
    )
    tiles = [
        TensorDescriptor.from_tensor(qkv, [rows, max(_LEAST, columns)])
        for rows in (_QUERIES, KEYS)
        for columns in (low, high)
    ]
    scale = math.log2(math.e) / math.sqrt(channels)
    launch(_attend_kernel, (blocks, splits))(
        *tiles, mixed, most, total, tokens, split, scale,
        C=channels, LOW=low, HIGH=max(1, high), QUERIES=_QUERIES, KEYS=KEYS, STAGES=_STAGES,
        num_warps=_WARPS,
    )  # fmt: skip
    if splits == 1:
        return mixed[0]
    out = qkv.new_empty((tokens, channels))
    launch(_join_kernel, (triton.cdiv(tokens, _JOINED_TOKENS),))(
        mixed, most, total, out, tokens, splits,
        C=channels, C_BLOCK=triton.next_power_of_2(channels), BLOCK=_JOINED_TOKENS, num_warps=4,
    )  # fmt: skip
    return out


def _attend_by_runs(qkv: Tensor) -> Tensor:
    """With scores in the tensors' dtype: keys less their mean, which no softmax sees, keep them
    small.
    """
    query, key, value = qkv.chunk(3, dim=1)
    key = (key - key.float().mean(0)).to(qkv.dtype)
    out = torch.empty_like(key)
    for run, mixed in zip(query.split(RUN), out.split(RUN), strict=True):
        scores = (run * (1 / math.sqrt(key.shape[1]))) @ key.T
        torch.mm(torch.softmax(scores, dim=1), value, out=mixed)
    return out


def plan_splits(tokens: int, processors: int) -> tuple[int, int]:
    """Into how many parts the keys are cut, and how many keys a part has.

    Programs run in turns of as many as the device has multiprocessors, and the last turn may be
    nearly empty: parts make it fuller. Each costs a pass over the results, say 1 %.
    """
    blocks = triton.cdiv(tokens, _QUERIES)

    def worth(splits: int) -> float:
        programs = blocks * splits
        turns = triton.cdiv(programs, processors)
        return programs / (turns * processors) - 0.01 * splits

    most = max(1, min(_MOST_SPLITS, tokens // (4 * KEYS)))
    splits = max(range(1, most + 1), key=worth)
    split = triton.cdiv(triton.cdiv(tokens, splits), KEYS) * KEYS
    return triton.cdiv(tokens, split), split


#: Columns of a tile at least: 16 bytes and one product.
_LEAST = 16


def _halves(channels: int) -> tuple[int, int]:
    low = 1 << (channels.bit_length() - 1)
    return low, channels - low


def _takes(qkv: Tensor) -> bool:
    channels = qkv.shape[1] // 3
    low, high = _halves(channels)
    fits = low >= _LEAST and (high == 0 or (high >= _LEAST and high & (high - 1) == 0))
    return (
        fits
        and channels <= _MOST_CHANNELS
        and qkv.dtype in (torch.float16, torch.bfloat16)
        and _properties(qkv).major in _CAPABILITIES
    )


def _properties(qkv: Tensor) -> torch._C._CudaDeviceProperties:
    return torch.cuda.get_device_properties(qkv.device)
