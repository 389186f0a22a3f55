"""Column sums of attention without the attention map, as two Triton kernels.

First the log-sum-exp of each query's row, then, with it, each column's sum over the queries: the
keys are read twice, the logits are formed tile by tile, memory beside inputs and results is O(n).
Products are accumulated and summed in float32 whatever the inputs are. Every column is summed in
one order, so that equal inputs give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["column_sums"]

ROWS, COLUMNS = 64, 64
"""Queries and keys of a tile."""


@triton.jit
def _log_sum_exp(
    query, key, places, out,
    query_g, query_h, query_n, query_d, key_g, key_h, key_n, key_d,
    scale, heads, shared, count, total, size,
    MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out [G H, n]: log sum exp of the logits of each query over the keys that it sees."""
    block = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    group, head = pair // heads, pair % heads
    rows = block * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, SIZE)
    inside = rows < count
    at = tl.load(places + rows, mask=inside, other=0)
    start = query + group * query_g + head * query_h
    where = rows[:, None] * query_n + dims[None, :] * query_d
    queries = tl.load(start + where, mask=inside[:, None] & (dims < size)[None, :], other=0.0)
    first_key = key + group * key_g + (head // shared) * key_h
    best = tl.full([ROWS], float("-inf"), tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    end = total
    if MASKED:
        end = tl.max(at, 0) + 1
    for first in range(0, end, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        seen = columns < total
        where = columns[None, :] * key_n + dims[:, None] * key_d
        keys = tl.load(first_key + where, mask=seen[None, :] & (dims < size)[:, None], other=0.0)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        keep = seen[None, :] & (columns[None, :] >= 0)
        if MASKED:
            keep = keep & (columns[None, :] <= at[:, None])
        logits = tl.where(keep, logits, float("-inf"))
        higher = tl.maximum(best, tl.max(logits, 1))
        sums = sums * tl.exp(best - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
        best = higher
    tl.store(out + pair * count + rows, best + tl.log(sums), mask=inside)


@triton.jit
def _column_sums(
    query, key, places, normaliser, out,
    query_g, query_h, query_n, query_d, key_g, key_h, key_n, key_d,
    scale, heads, shared, count, size,
    MASKED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """out [G H, n]: attention that each visual token gets from all queries."""
    block = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    group, head = pair // heads, pair % heads
    columns = block * COLUMNS + tl.arange(0, COLUMNS)
    dims = tl.arange(0, SIZE)
    seen = columns < count
    at = tl.load(places + columns, mask=seen, other=0)
    first_key = key + group * key_g + (head // shared) * key_h
    where = at[None, :] * key_n + dims[:, None] * key_d
    keys = tl.load(first_key + where, mask=seen[None, :] & (dims < size)[:, None], other=0.0)
    start = query + group * query_g + head * query_h
    sums = tl.zeros([COLUMNS], tl.float32)
    begin = 0
    if MASKED:
        begin = (block * COLUMNS) // ROWS * ROWS  # earlier queries see none of these columns
    for first in range(begin, count, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = rows < count
        where = rows[:, None] * query_n + dims[None, :] * query_d
        queries = tl.load(start + where, mask=inside[:, None] & (dims < size)[None, :], other=0.0)
        level = tl.load(normaliser + pair * count + rows, mask=inside, other=0.0)
        logits = tl.dot(queries, keys, input_precision="ieee") * scale
        keep = inside[:, None] & seen[None, :]
        if MASKED:
            keep = keep & (columns[None, :] <= rows[:, None])
        # Left out before exp: what is hidden may be far above what its query sees.
        sums += tl.sum(tl.exp(tl.where(keep, logits - level[:, None], float("-inf"))), 0)
    tl.store(out + pair * count + columns, sums, mask=seen)


def column_sums(query: Tensor, key: Tensor, scale: float, places: Tensor, masked: bool) -> Tensor:
    """[G, n] in float32, softmax attention that n visual tokens get from themselves, summed over
    queries, mean over heads.

    Args:
        query: [G, H, n, d], of the visual tokens; d at most `kernels.LARGEST_HEAD`.
        key: [G, H_kv, N, d], H a multiple of H_kv, in the queries' dtype.
        scale: 1 / sqrt(d).
        places: [n], rising, where the visual tokens stand among the keys.
        masked: whether a query sees only keys up to its own place.
    """
    groups, heads, count, size = query.shape
    total = key.shape[2]
    if query.dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        query, key = query.float(), key.float()  # the interpreter has no bfloat16 products
    places = places.to(device=query.device, dtype=torch.int32).contiguous()
    normaliser = torch.empty(groups * heads, count, device=query.device, dtype=torch.float32)
    out = torch.empty_like(normaliser)
    strides = (*query.stride(), *key.stride())
    width = max(16, triton.next_power_of_2(size))
    constants = {"MASKED": masked, "ROWS": ROWS, "COLUMNS": COLUMNS, "SIZE": width}
    shared = heads // key.shape[1]
    grid = (triton.cdiv(count, ROWS), groups * heads)
    _log_sum_exp[grid](
        query, key, places, normaliser, *strides,
        scale, heads, shared, count, total, size, **constants,
    )  # fmt: skip
    grid = (triton.cdiv(count, COLUMNS), groups * heads)
    _column_sums[grid](
        query, key, places, normaliser, out, *strides,
        scale, heads, shared, count, size, **constants,
    )  # fmt: skip
    return out.view(groups, heads, count).mean(1)
