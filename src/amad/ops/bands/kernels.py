"""Kernels on one head at a time: denominators, maps, and the gradients of query and key."""
# ruff: noqa: ANN001

from typing import no_type_check

import triton
import triton.language as tl

MAP_SCALE = tl.constexpr(32768.0)
"""Maps are stored times 2^15: float16 then has eleven bits for every probability above 1.9e-9."""
LOG2_E = tl.constexpr(1.4426950408889634)
INF = tl.constexpr(float("inf"))

NO_MASK = tl.constexpr(0)
BOOL_MASK = tl.constexpr(1)
FLOAT_MASK = tl.constexpr(2)


@triton.jit
@no_type_check
def _tanh(x):
    power = tl.exp2(tl.abs(x) * -2.8853900817779268)
    far = (1.0 - power) / (1.0 + power)
    square = x * x
    near = x * (1.0 + square * (-0.33333333 + square * (0.13333333 - square * 0.053968254)))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0, -far, far))


@triton.jit
@no_type_check
def _logits(
    q, key, mask, bias, query_segment, key_segment, at_query, at_key, n_queries, n_keys,
    key_row, mask_row, mask_column, bias_row, bias_column, scale, softcap, causal_offset, window,
    mask_kind: tl.constexpr, hidden: tl.constexpr, biased: tl.constexpr, capped: tl.constexpr,
    causal: tl.constexpr, windowed: tl.constexpr, segmented: tl.constexpr,
    width: tl.constexpr, width_block: tl.constexpr,
):  # fmt: skip
    """Scores of a tile times log2(e), -inf where a key may not be attended; and the slope of the soft cap."""
    at_width = tl.arange(0, width_block)
    k = tl.load(
        key + at_key[:, None] * key_row + at_width[None, :],
        mask=(at_key < n_keys)[:, None] & (at_width < width)[None, :],
        other=0.0,
    )
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    slope = x
    if capped:
        level = _tanh(x / softcap)
        slope = 1.0 - level * level
        x = softcap * level
    x = x * LOG2_E
    inside = (at_query < n_queries)[:, None] & (at_key < n_keys)[None, :]
    visible = inside
    if biased:
        place = at_query[:, None] * bias_row + at_key[None, :] * bias_column
        x += tl.load(bias + place, mask=inside, other=0.0).to(tl.float32) * LOG2_E
    if mask_kind != NO_MASK:
        place = at_query[:, None] * mask_row + at_key[None, :] * mask_column
        if mask_kind == BOOL_MASK:
            visible = visible & (tl.load(mask + place, mask=inside, other=0) != 0)
        else:
            added = tl.load(mask + place, mask=inside, other=0.0).to(tl.float32)
            visible = visible & (added > hidden)
            x += tl.where(added > hidden, added, 0.0) * LOG2_E
    if causal:
        visible = visible & (at_key[None, :] <= at_query[:, None] + causal_offset)
    if windowed:
        distance = at_key[None, :] - at_query[:, None] - (n_keys - n_queries)
        visible = visible & (tl.abs(distance) < window)
    if segmented:
        mine = tl.load(query_segment + at_query, mask=at_query < n_queries, other=0)
        its = tl.load(key_segment + at_key, mask=at_key < n_keys, other=0)
        visible = visible & (mine[:, None] == its[None, :])
    return tl.where(visible, x, -INF), slope


@triton.jit(do_not_specialize=["causal_offset", "window"])
@no_type_check
def lse_kernel(
    query, key, mask, bias, query_segment, key_segment, sinks, lse, n_heads, group, n_queries, n_keys,
    query_batch, query_head, query_row, key_batch, key_head, key_row,
    mask_batch, mask_head, mask_row, mask_column, bias_batch, bias_head, bias_row, bias_column,
    query_segment_batch, key_segment_batch, scale, softcap, causal_offset, window,
    mask_kind: tl.constexpr, hidden: tl.constexpr, biased: tl.constexpr, capped: tl.constexpr,
    causal: tl.constexpr, windowed: tl.constexpr, segmented: tl.constexpr, sunk: tl.constexpr,
    width: tl.constexpr, width_block: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Log of each row's denominator to the base 2; +inf for rows that may attend nothing.

    Grid: (samples x heads, blocks of rows).
    """
    sample = (tl.program_id(0) // n_heads).to(tl.int64)
    head = tl.program_id(0) % n_heads
    first_row = tl.program_id(1) * block_q
    at_query = first_row + tl.arange(0, block_q)
    at_width = tl.arange(0, width_block)
    q = tl.load(
        query + sample * query_batch + head * query_head + at_query[:, None] * query_row + at_width[None, :],
        mask=(at_query < n_queries)[:, None] & (at_width < width)[None, :],
        other=0.0,
    )
    first = 0
    last = n_keys
    if causal:
        last = min(last, first_row + block_q + causal_offset)
    if windowed:
        shift = n_keys - n_queries
        last = min(last, first_row + block_q + shift + window)
        first = max(first_row + shift - window + 1, 0) // block_k * block_k
    highest = tl.full([block_q], -INF, tl.float32)
    total = tl.zeros([block_q], tl.float32)
    for start in range(first, last, block_k):
        at_key = start + tl.arange(0, block_k)
        x, _ = _logits(
            q, key + sample * key_batch + (head // group) * key_head,
            mask + sample * mask_batch + head * mask_head, bias + sample * bias_batch + head * bias_head,
            query_segment + sample * query_segment_batch, key_segment + sample * key_segment_batch,
            at_query, at_key, n_queries, n_keys, key_row, mask_row, mask_column, bias_row, bias_column,
            scale, softcap, causal_offset, window,
            mask_kind, hidden, biased, capped, causal, windowed, segmented, width, width_block,
        )  # fmt: skip
        higher = tl.maximum(highest, tl.max(x, 1))
        base = tl.where(higher == -INF, 0.0, higher)
        total = total * tl.exp2(highest - base) + tl.sum(tl.exp2(x - base[:, None]), 1)
        highest = higher
    alive = highest > -INF
    base = tl.where(alive, highest, 0.0)
    if sunk:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        higher = tl.maximum(base, sink)
        total = total * tl.exp2(base - higher) + tl.exp2(sink - higher)
        base = higher
    # `not total <= 0` rather than `total > 0`: a NaN goes through.
    value = base + tl.log2(tl.where(alive, total, 1.0))
    place = tl.program_id(0).to(tl.int64) * n_queries + at_query
    tl.store(lse + place, tl.where(highest == -INF, INF, value), mask=at_query < n_queries)


@triton.jit(do_not_specialize=["first_sample", "first_row", "n_rows", "causal_offset", "window"])
@no_type_check
def probability_kernel(
    query, key, mask, bias, query_segment, key_segment, lse, maps, cap_slopes,
    first_sample, first_row, n_rows, pitch, n_heads, group, n_queries, n_keys,
    query_batch, query_head, query_row, key_batch, key_head, key_row,
    mask_batch, mask_head, mask_row, mask_column, bias_batch, bias_head, bias_row, bias_column,
    query_segment_batch, key_segment_batch, scale, softcap, causal_offset, window,
    mask_kind: tl.constexpr, hidden: tl.constexpr, biased: tl.constexpr, capped: tl.constexpr,
    causal: tl.constexpr, windowed: tl.constexpr, segmented: tl.constexpr, with_slopes: tl.constexpr,
    width: tl.constexpr, width_block: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """The map of a band, times 2^15, as (sample, head, row, column); columns from the last key to the pitch are 0.

    Grid: (blocks of keys, blocks of rows, samples of the band x heads).
    """
    in_band = tl.program_id(2) // n_heads
    sample = (first_sample + in_band).to(tl.int64)
    head = tl.program_id(2) % n_heads
    at_row = tl.program_id(1) * block_q + tl.arange(0, block_q)
    at_query = first_row + at_row
    at_key = tl.program_id(0) * block_k + tl.arange(0, block_k)
    at_width = tl.arange(0, width_block)
    here = at_row < n_rows
    q = tl.load(
        query + sample * query_batch + head * query_head + at_query[:, None] * query_row + at_width[None, :],
        mask=here[:, None] & (at_width < width)[None, :],
        other=0.0,
    )
    x, slope = _logits(
        q, key + sample * key_batch + (head // group) * key_head,
        mask + sample * mask_batch + head * mask_head, bias + sample * bias_batch + head * bias_head,
        query_segment + sample * query_segment_batch, key_segment + sample * key_segment_batch,
        at_query, at_key, n_queries, n_keys, key_row, mask_row, mask_column, bias_row, bias_column,
        scale, softcap, causal_offset, window,
        mask_kind, hidden, biased, capped, causal, windowed, segmented, width, width_block,
    )  # fmt: skip
    denominator = tl.load(lse + (sample * n_heads + head) * n_queries + at_query, mask=here, other=INF)
    p = tl.exp2(x - denominator[:, None]) * MAP_SCALE
    place = (tl.program_id(2).to(tl.int64) * n_rows + at_row[:, None]) * pitch + at_key[None, :]
    stored = here[:, None] & (at_key < pitch)[None, :]
    tl.store(maps + place, p.to(maps.dtype.element_ty), mask=stored)
    if with_slopes:
        tl.store(cap_slopes + place, slope.to(cap_slopes.dtype.element_ty), mask=stored)


@triton.jit(do_not_specialize=["first_sample", "n_rows", "part"])
@no_type_check
def query_gradient_kernel(
    to_logits, key, bound, to_query, first_sample, n_rows, pitch, n_heads, group, n_keys,
    key_batch, key_head, key_row, scale, part,
    width: tl.constexpr, width_block: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """dQ = scale dX K for the rows of a band, over ``part`` keys: (part, sample, head, row, width).

    Grid: (blocks of rows, samples of the band x heads, parts).
    """
    sample = (first_sample + tl.program_id(1) // n_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % n_heads) // group
    at_row = tl.program_id(0) * block_q + tl.arange(0, block_q)
    at_width = tl.arange(0, width_block)
    here = at_row < n_rows
    to_logits += tl.program_id(1).to(tl.int64) * n_rows * pitch
    key += sample * key_batch + kv_head * key_head
    total = tl.zeros([block_q, width_block], tl.float32)
    first = tl.program_id(2) * part
    for start in range(first, min(first + part, pitch), block_k):
        at_key = start + tl.arange(0, block_k)
        slope = tl.load(
            to_logits + at_row[:, None] * pitch + at_key[None, :],
            mask=here[:, None] & (at_key < pitch)[None, :],
            other=0.0,
        )
        k = tl.load(
            key + at_key[:, None] * key_row + at_width[None, :],
            mask=(at_key < n_keys)[:, None] & (at_width < width)[None, :],
            other=0.0,
        )
        total += tl.dot(slope.to(k.dtype), k, input_precision="ieee")
    total *= tl.load(bound + tl.program_id(1) // group) * (scale / MAP_SCALE)
    head = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    place = (head * n_rows + at_row[:, None]) * width + at_width[None, :]
    tl.store(to_query + place, total, mask=here[:, None] & (at_width < width)[None, :])


@triton.jit(do_not_specialize=["first_sample", "first_row", "n_rows"])
@no_type_check
def key_gradient_kernel(
    to_logits, query, bound, to_key, first_sample, first_row, n_rows, pitch, n_kv_heads, group, n_keys,
    query_batch, query_head, query_row, scale,
    width: tl.constexpr, width_block: tl.constexpr, block_q: tl.constexpr, block_k: tl.constexpr,
):  # fmt: skip
    """Adds scale dX^T Q of a band to dK, over the query heads that share the key head.

    Grid: (blocks of keys, samples of the band x key heads). Bands follow each other, so nobody else adds here.
    """
    sample = (first_sample + tl.program_id(1) // n_kv_heads).to(tl.int64)
    kv_head = tl.program_id(1) % n_kv_heads
    at_key = tl.program_id(0) * block_k + tl.arange(0, block_k)
    at_width = tl.arange(0, width_block)
    to_logits += tl.program_id(1).to(tl.int64) * group * n_rows * pitch
    query += sample * query_batch + kv_head * group * query_head + first_row * query_row
    total = tl.zeros([block_k, width_block], tl.float32)
    for _ in range(group):
        for start in range(0, n_rows, block_q):
            at_row = start + tl.arange(0, block_q)
            here = at_row < n_rows
            slope = tl.load(
                to_logits + at_row[:, None] * pitch + at_key[None, :],
                mask=here[:, None] & (at_key < pitch)[None, :],
                other=0.0,
            )
            q = tl.load(
                query + at_row[:, None] * query_row + at_width[None, :],
                mask=here[:, None] & (at_width < width)[None, :],
                other=0.0,
            )
            total += tl.dot(tl.trans(slope.to(q.dtype)), q, input_precision="ieee")
        to_logits += n_rows * pitch
        query += query_head
    total *= tl.load(bound + tl.program_id(1)) * (scale / MAP_SCALE)
    place = to_key + ((sample * n_kv_heads + kv_head) * n_keys + at_key[:, None]) * width + at_width[None, :]
    here = (at_key < n_keys)[:, None] & (at_width < width)[None, :]
    tl.store(place, tl.load(place, mask=here, other=0.0) + total, mask=here)
