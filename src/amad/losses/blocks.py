"""Losses that the operators cannot express, computed a few query rows at a time."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from amad.capture.record import AttentionRecord
from amad.ops.maps import BLOCK_NUMBERS

Result = TypeVar("Result")


def over_rows(record: AttentionRecord, n_rows: int, measure: Callable[[slice], Result]) -> list[Result]:
    """What ``measure`` says of consecutive blocks of at most so many query rows of a record.

    Nothing that it makes is kept for the backward pass, which makes it again, block by block.
    """
    if not torch.is_grad_enabled():
        return [measure(rows) for rows in record.row_slices(n_rows)]
    return [
        checkpoint(measure, rows, use_reentrant=False, preserve_rng_state=False)
        for rows in record.row_slices(n_rows)
    ]


def rows_of_a_block(student: AttentionRecord, teacher: AttentionRecord) -> int:
    """So many rows of all heads of both maps are one block of :data:`amad.ops.maps.BLOCK_NUMBERS` numbers."""
    n_keys = max(student.n_keys, teacher.n_keys)
    return max(BLOCK_NUMBERS // (student.n_batch * (student.n_heads + teacher.n_heads) * n_keys), 1)
