"""Launches of the kernels on one head at a time, with what they need to know of a record."""

from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import HIDDEN, AttentionRecord
from amad.ops.bands import kernels
from amad.ops.bands.configs import head_config, padded
from amad.ops.bands.workspace import Band

MOST_PROGRAMS = 65535
"""On the second and third axis of a CUDA grid."""

ENOUGH_PROGRAMS = 512
"""Of four warps, for the 132 multiprocessors of an H100."""


def log_denominators(record: AttentionRecord) -> Float[Tensor, "batch head row"]:
    """Log of the softmax's denominators to the base 2; +inf for rows that may attend nothing."""
    n_batch, n_heads, n_queries, _ = record.map_shape
    lse = torch.empty(n_batch, n_heads, n_queries, dtype=torch.float32, device=record.query.device)
    tiles, options = _tiles("lse", record)
    kernels.lse_kernel[(n_batch * n_heads, triton.cdiv(n_queries, tiles["block_q"]))](
        **_scores(record),
        sinks=record.query if record.sinks is None else record.sinks.contiguous(),
        lse=lse,
        sunk=record.sinks is not None,
        **tiles,
        **options,
    )
    return lse


def fill(record: AttentionRecord, lse: Tensor, band: Band, maps: Tensor, cap_slopes: Tensor | None) -> None:
    """Write the maps of a band, times 2^15, and the slopes of its soft cap where they are wanted."""
    tiles, options = _tiles("probability", record)
    grid = (
        triton.cdiv(band.pitch, tiles["block_k"]),
        triton.cdiv(band.n_rows, tiles["block_q"]),
        band.n_samples * record.n_heads,
    )
    kernels.probability_kernel[grid](
        **_scores(record),
        lse=lse,
        maps=maps,
        cap_slopes=maps if cap_slopes is None else cap_slopes,
        **_place(band),
        with_slopes=cap_slopes is not None,
        **tiles,
        **options,
    )


def add_projections(
    record: AttentionRecord,
    to_logits: Tensor,
    bound: Float[Tensor, "sample kv_head"],
    band: Band,
    to_query: Tensor | None,
    to_key: Float[Tensor, "batch kv_head key width"] | None,
) -> None:
    """Write the gradient of the query rows of a band and add its part to the gradient of the keys.

    Gradients of the scores are stored divided by ``bound`` and times 2^15.
    """
    group = record.n_heads // record.n_kv_heads
    shared = {
        "to_logits": to_logits,
        "bound": bound,
        "group": group,
        "n_keys": record.n_keys,
        "scale": record.scale,
    }
    place = _place(band)
    if to_query is not None:
        tiles, options = _tiles("query_gradient", record)
        grid = (triton.cdiv(band.n_rows, tiles["block_q"]), band.n_samples * record.n_heads)
        part = _part(grid[0] * grid[1], band.pitch, tiles["block_k"])
        n_parts = triton.cdiv(band.pitch, part)
        parts = bound.new_empty(n_parts, band.n_samples, record.n_heads, band.n_rows, tiles["width"])
        kernels.query_gradient_kernel[(*grid, n_parts)](
            **shared,
            **{name: value for name, value in place.items() if name != "first_row"},
            n_heads=record.n_heads,
            key=record.key,
            to_query=parts,
            **_strides("key", record.key),
            part=part,
            **tiles,
            **options,
        )
        to_query[band.samples, :, band.rows] = parts.sum(0)
    if to_key is not None:
        tiles, options = _tiles("key_gradient", record)
        n_keys = min(band.pitch, record.n_keys)
        grid = (triton.cdiv(n_keys, tiles["block_k"]), band.n_samples * record.n_kv_heads)
        kernels.key_gradient_kernel[grid](
            **shared,
            **place,
            n_kv_heads=record.n_kv_heads,
            query=record.query,
            to_key=to_key,
            **_strides("query", record.query),
            **tiles,
            **options,
        )


def _part(n_programs: int, n_keys: int, block: int) -> int:
    """Keys per program, so that a few programs with long loops become enough for a whole GPU."""
    n_parts = max(min(ENOUGH_PROGRAMS // n_programs, n_keys // (4 * block)), 1)
    return int(triton.cdiv(triton.cdiv(n_keys, n_parts), block)) * block


def _tiles(kernel: str, record: AttentionRecord) -> tuple[dict[str, int], dict[str, int]]:
    """Sizes that the kernel is compiled for, and options of the compiler."""
    width = record.query.shape[3]
    config = head_config(kernel, padded(width), record.query.dtype.itemsize == 2)
    tiles = {
        "width": width,
        "width_block": padded(width),
        "block_q": config.rows,
        "block_k": config.numbers,
    }
    return tiles, {"num_warps": config.warps, "num_stages": config.stages}


def _place(band: Band) -> dict[str, int]:
    return {name: getattr(band, name) for name in ("first_sample", "first_row", "n_rows", "pitch")}


def _strides(name: str, tensor: Tensor) -> dict[str, int]:
    batch, head, row, _ = tensor.stride()
    return {f"{name}_batch": batch, f"{name}_head": head, f"{name}_row": row}


def _scores(record: AttentionRecord) -> dict[str, Any]:
    """Arguments that the scores of a record follow from. The query stands in for a tensor that is not there."""
    mask, bias, unused = record.mask, record.position_bias, record.query
    kind, hidden = kernels.NO_MASK, 0.0
    if mask is not None:
        is_bool = mask.dtype == torch.bool
        kind = kernels.BOOL_MASK if is_bool else kernels.FLOAT_MASK
        hidden = 0.0 if is_bool else HIDDEN
        mask = (mask.view(torch.uint8) if is_bool else mask).expand(record.map_shape)
    if bias is not None:
        bias = bias.expand(record.map_shape)
    segments = [unused, unused]
    if record.segments is not None:
        expanded = [one.expand(record.n_batch, -1) for one in record.segments]
        segments = [one if one.stride(1) == 1 else one.contiguous() for one in expanded]
    mask_strides = (0, 0, 0, 0) if mask is None else mask.stride()
    bias_strides = (0, 0, 0, 0) if bias is None else bias.stride()
    axes = ("batch", "head", "row", "column")
    return {
        "query": record.query,
        "key": record.key,
        "mask": unused if mask is None else mask,
        "bias": unused if bias is None else bias,
        "query_segment": segments[0],
        "key_segment": segments[1],
        "n_heads": record.n_heads,
        "group": record.n_heads // record.n_kv_heads,
        "n_queries": record.n_queries,
        "n_keys": record.n_keys,
        **_strides("query", record.query),
        **_strides("key", record.key),
        **{f"mask_{axis}": stride for axis, stride in zip(axes, mask_strides, strict=True)},
        **{f"bias_{axis}": stride for axis, stride in zip(axes, bias_strides, strict=True)},
        "query_segment_batch": segments[0].stride(0),
        "key_segment_batch": segments[1].stride(0),
        "scale": record.scale,
        "softcap": 1.0 if record.softcap is None else record.softcap,
        "causal_offset": record.causal_offset or 0,
        "window": record.window or 0,
        "mask_kind": kind.value,
        "hidden": hidden,
        "biased": bias is not None,
        "capped": record.softcap is not None,
        "causal": record.causal_offset is not None,
        "windowed": record.window is not None,
        "segmented": record.segments is not None,
    }
