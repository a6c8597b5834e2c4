"""Divergence between the means over the heads of both models."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.losses.aligned import constant_alignment
from amad.losses.pairs import PairTerm
from amad.losses.rivals import MeanOfHeads
from amad.ops.aligned_kl.reference import mean_over_rows, mixture_kl
from amad.ops.maps import BLOCK_NUMBERS
from amad.ops.resampling import common_dtype, match_tokens, whole


class HeadMean(MeanOfHeads):
    """The mean of the teacher's heads teaches the mean of the student's.

        Ht KL( mean_i T_i || mean_j S_j )    in nats, the mean over query rows

    After TextBrewer's ``attention_ce_mean`` (Yang et al. 2020, arXiv:2002.12620), a cross entropy, which averages what
    the softmax is taken of, where here maps are averaged; the factor Ht stands for the sum over teacher heads of
    every other method.

    The cross entropy is linear in the teacher's map, so this is the ``kl`` of :class:`MeanOfHeads` less a constant,
    sum_i KL( T_i || mean_l T_l ), which is how far the teacher's heads are apart: both have the same gradient, and as
    training they are one method. The value can be zero here. Figures of the alignment are those of ``mean``.
    """

    variants: ClassVar[tuple[str, ...]] = ("kl",)

    def weigh_heads(self, importance: Mapping[SiteKey, Float[Tensor, " head"]]) -> None:
        """Refused: the mean has no heads to weigh.

        Raises:
            RecipeError: always.
        """
        PairTerm.weigh_heads(self, importance)

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        share = constant_alignment(teacher, teacher, 1 / teacher.n_heads)
        return super()._loss(pair, student, teacher) - distance_of_heads(student, teacher, share).sum(-1)


@torch.no_grad()
def distance_of_heads(
    student: AttentionRecord, teacher: AttentionRecord, mixture: Float[Tensor, "#batch teacher teacher"]
) -> Float[Tensor, "batch teacher"]:
    """KL( T_i || sum_l m_il T_l ) of the teacher in nats, the mean over the rows that count in both models.

    On the student's tokens, some rows at a time. This is what the divergence of a mixture of teacher heads is less than
    the mixture of their divergences, from any map.
    """
    on_student, on_teacher = match_tokens(student, teacher)
    dtype = common_dtype(student, teacher)
    n_rows = max(BLOCK_NUMBERS // (teacher.n_batch * teacher.n_heads * student.n_keys), 1)
    sums = []
    for rows in on_student.row_slices(n_rows):
        keep = on_student.keep(rows) & on_teacher.keep(rows)
        maps = whole(on_teacher.rows(rows, dtype).masked_fill(~keep[:, None, :, None], 0.0)).flatten(2)
        weights = mixture.to(dtype).expand(len(maps), -1, -1)
        sums.append((mixture_kl(maps, maps, weights), keep.sum(1, keepdim=True)))
    return mean_over_rows(sums)
