"""Divergence of a teacher's maps from a mixture of a student's, from dense maps: the definition."""

import torch
from jaxtyping import Float
from torch import Tensor

from amad.ops.maps import MapBlock
from amad.ops.resampling import whole

MASS_FLOOR = 1e-30
"""Probabilities below it count as it does inside a logarithm: no key costs more than 69 nats per unit of mass."""


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


def whole_rows(block: MapBlock) -> MapBlock:
    """The block with every row divided by its sum; a row of zeros stays one."""
    student = block.student if block.student_is_whole else whole(block.student)
    teacher = block.teacher if block.teacher_is_whole else whole(block.teacher)
    return MapBlock(student, teacher, block.keep, True, True)
