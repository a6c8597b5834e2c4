"""Divergence of a teacher's maps from a mixture of a student's, from dense maps: the definition."""

from collections.abc import Iterable
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.alignment import alignment_weights
from amad.ops.attention_gram.reference import row_grams_of_maps
from amad.ops.maps import MapBlock, map_blocks
from amad.ops.resampling import whole

MASS_FLOOR = 1e-30
"""Probabilities below it count as it does inside a logarithm: no key costs more than 69 nats per unit of mass."""


def aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """See :func:`amad.ops.aligned_kl.aligned_kl`."""
    return mean_over_rows(kl_sums(block, alignment) for block in map_blocks(student, teacher))


def row_aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, temperature: float, detach_alignment: bool
) -> Float[Tensor, "batch teacher"]:
    """See :func:`amad.ops.aligned_kl.row_aligned_kl`."""
    return mean_over_rows(
        _row_aligned(block, temperature, detach_alignment) for block in map_blocks(student, teacher)
    )


def mixture_kl(
    student: Float[Tensor, "sample student key"],
    teacher: Float[Tensor, "sample teacher key"],
    alignment: Float[Tensor, "sample teacher student"],
) -> Float[Tensor, "sample teacher"]:
    """sum_k t_ik log( t_ik / sum_j a_ij s_jk ) in nats, for rows of numbers that are probabilities.

    Several rows behind one another on the key axis give the sum of their divergences.
    """
    mixture = torch.bmm(alignment, student)
    return (teacher * (_log(teacher) - _log(mixture))).sum(-1)


def _log(mass: Tensor) -> Tensor:
    return mass.clamp(min=MASS_FLOOR).log()


def kl_sums(block: MapBlock, alignment: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the rows of a block (batch, teacher), and how many count (batch, 1)."""
    rows = _whole_rows(block)
    student, teacher = rows.student.flatten(2), rows.teacher.flatten(2)
    return mixture_kl(student, teacher, alignment.to(student.dtype)), block.keep.sum(1, keepdim=True)


def _row_aligned(block: MapBlock, temperature: float, detach_alignment: bool) -> tuple[Tensor, Tensor]:
    rows = _whole_rows(block)
    alignment = alignment_weights(row_grams_of_maps(rows), temperature)
    values = mixture_kl(*rows.by_row(), alignment.detach() if detach_alignment else alignment)
    return values.view(*block.keep.shape, -1).sum(1), block.keep.sum(1, keepdim=True)


def _whole_rows(block: MapBlock) -> MapBlock:
    """The block with every row divided by its sum; a row of zeros stays one."""
    student = block.student if block.student_is_whole else whole(block.student)
    teacher = block.teacher if block.teacher_is_whole else whole(block.teacher)
    return MapBlock(student, teacher, block.keep, True, True)


def mean_over_rows(parts: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean, from the sums and numbers of rows of every block."""
    total, n_rows = reduce(lambda one, two: (one[0] + two[0], one[1] + two[1]), parts)
    return total / n_rows.clamp(min=1)
