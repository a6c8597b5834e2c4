"""Divergence of each teacher head's map from the mixture of student heads that learns from it."""

from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.errors import ShapeError
from amad.ops.aligned_kl.dense import mixture_kl
from amad.ops.aligned_kl.reference import MASS_FLOOR, whole_rows
from amad.ops.alignment import alignment_weights
from amad.ops.attention_gram.reference import row_grams_of_maps
from amad.ops.maps import MapBlock, map_blocks

__all__ = ["MASS_FLOOR", "aligned_kl", "kl_of_maps", "row_aligned_kl"]


def aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """KL of each teacher head from its mixture of student heads, in nats, averaged over the rows that count.

        kl_i = mean_q sum_k T_iqk log( T_iqk / sum_j a_ij S_jqk )

    Zhao et al. 2024, equation 9, read row by row; with rows that sum to one it equals the divergence of the
    flattened maps divided by their sums. Rows of which a sink takes a part are divided by their sum first, in
    both models and per head. 0 log 0 is 0. Where the mixture has less than 1e-30, it counts as that: the value
    is finite, and no gradient flows through that key.

    A row counts if it does in both models; a sample without one gives zero and zero gradient. Where the tokens of
    the two differ, the teacher's map is resampled (:func:`amad.ops.resampling.match_tokens`). Gradients flow to the
    student's query, key and position bias and to the alignment. In float64 if either record is, else in float32.

    Args:
        student: The student's record.
        teacher: The teacher's record.
        alignment: a_ij, in which the student's heads sum to one.

    Raises:
        ShapeError: if the alignment has other heads or samples than the records, the batches differ, or the
            tokens differ and cannot be matched.
    """
    expected = (student.n_batch, teacher.n_heads, student.n_heads)
    if tuple(alignment.shape) != expected:
        raise ShapeError(
            f"the alignment is {tuple(alignment.shape)}, but the records have (samples, teacher heads, student "
            f"heads) = {expected}. Make it from the same records."
        )
    with torch.autocast(student.query.device.type, enabled=False):
        return kl_of_maps(map_blocks(student, teacher), alignment)


def row_aligned_kl(
    student: AttentionRecord,
    teacher: AttentionRecord,
    temperature: float = 1.0,
    detach_alignment: bool = False,
) -> Float[Tensor, "batch teacher"]:
    """As :func:`aligned_kl`, with an alignment of its own for each query row.

        kl_i = mean_q sum_k T_iqk log( T_iqk / sum_j a_ijq S_jqk ),
        a_ijq = softmax_j( <T_iq, S_jq> / (|T_iq| |S_jq|) / temperature )

    Zhao et al. 2024, equation 12, where rows are summed; here they are averaged, so that the term does not grow
    with the length.

    Args:
        student: The student's record.
        teacher: The teacher's record.
        temperature: Of the softmax over the student's heads.
        detach_alignment: Stop gradients through the alignment.

    Raises:
        ShapeError: as :func:`aligned_kl`.
        RecipeError: if the temperature is not above zero.
    """
    with torch.autocast(student.query.device.type, enabled=False):
        return _mean_over_rows(
            _row_aligned(block, temperature, detach_alignment) for block in map_blocks(student, teacher)
        )


def kl_of_maps(
    blocks: Iterable[MapBlock], alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """:func:`aligned_kl` of maps that are there, in blocks of query rows."""
    return _mean_over_rows(_aligned(block, alignment) for block in blocks)


def _aligned(block: MapBlock, alignment: Tensor) -> tuple[Tensor, Tensor]:
    whole = whole_rows(block)
    student, teacher = whole.student.flatten(2), whole.teacher.flatten(2)
    return mixture_kl(student, teacher, alignment.to(student.dtype)), block.keep.sum(1, keepdim=True)


def _row_aligned(block: MapBlock, temperature: float, detach_alignment: bool) -> tuple[Tensor, Tensor]:
    whole = whole_rows(block)
    alignment = alignment_weights(row_grams_of_maps(whole), temperature)
    rows = mixture_kl(*whole.by_row(), alignment.detach() if detach_alignment else alignment)
    return rows.view(*block.keep.shape, -1).sum(1), block.keep.sum(1, keepdim=True)


def _mean_over_rows(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """From sums (batch, teacher) and numbers of rows (batch, 1) of every block to the mean."""
    total, n_rows = reduce(lambda one, two: (one[0] + two[0], one[1] + two[1]), parts)
    return total / n_rows.clamp(min=1)
