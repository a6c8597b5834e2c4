"""What a run would do, in rows and numbers: attention sites, and the memory that recording them takes."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from amad.capture.record import AttentionRecord
from amad.capture.sites import Site

SITE_COLUMNS = ("stack", "layer", "heads", "key/value heads", "head width", "back-end", "module")
"""What :func:`site_row` gives."""

STACK_COLUMNS = ("model", "stack", "layers", "heads", "head width")
"""What each row of :func:`stack_rows` gives."""


def site_row(site: Site) -> tuple[Any, ...]:
    """One attention site, in the order of :data:`SITE_COLUMNS`."""
    key = site.key
    return key.stack, key.layer, site.n_heads, site.n_kv_heads, site.width, site.backend, site.name


def stack_rows(sites: Mapping[str, Sequence[Site]]) -> list[tuple[Any, ...]]:
    """One row per model and stack, in the order of :data:`STACK_COLUMNS`; unequal layers give a range."""
    stacks: dict[tuple[str, str], list[Site]] = {}
    for model, found in sites.items():
        for site in found:
            stacks.setdefault((model, site.key.stack), []).append(site)
    return [
        (*names, len(layers), _range(one.n_heads for one in layers), _range(one.width for one in layers))
        for names, layers in stacks.items()
    ]


def record_bytes(records: Iterable[AttentionRecord], batch_size: int) -> tuple[int, int]:
    """Bytes of recorded queries and keys, and of the attention maps that are never built, in float32.

    Args:
        records: Of any batch with texts of the usual length.
        batch_size: Examples of the batches to come.
    """
    recorded = maps = 0
    for record in records:
        recorded += 4 * batch_size * (record.query.numel() + record.key.numel()) // record.n_batch
        _, n_heads, n_queries, n_keys = record.map_shape
        maps += 4 * batch_size * n_heads * n_queries * n_keys
    return recorded, maps


def _range(values: Iterable[int]) -> str:
    numbers = sorted(set(values))
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"
