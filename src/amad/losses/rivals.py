"""Other ways than AMAD's to say which student head learns from which teacher head, under the same losses."""

from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from amad.axes import SitePair
from amad.capture.record import AttentionRecord
from amad.losses.aligned import AlignedAttention, constant_alignment
from amad.losses.scores import score_distance
from amad.ops.alignment import cosines
from amad.ops.attention_gram import AttentionGram


class OneToOne(AlignedAttention):
    """Student head k learns from teacher head k, in the order in which the models have them.

        a_ij = 1 if i = j, else 0;    teacher heads i >= Hs teach nobody, student heads j >= Ht learn from nobody

    The conventional way: DistillVLM (Fang et al. 2021, arXiv:2104.02096) and TinyBERT (Jiao et al. 2020,
    arXiv:1909.10351) have equally many heads on both sides. They compare maps as they are; ``mse`` here is on maps of
    norm one, as for every other alignment. The value depends on the order of the heads. It is the sum over min(Ht, Hs)
    teacher heads. The losses ``kl`` and ``mse`` are in :class:`amad.losses.aligned.AlignedAttention`; a third,
    ``scores``, is TinyBERT's on what the softmax is taken of: :func:`amad.losses.scores.score_distance`.
    """

    variants: ClassVar[tuple[str, ...]] = ("kl", "mse", "scores")

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        if self.variant == "scores":
            taught = torch.arange(teacher.n_heads, device=teacher.query.device) < student.n_heads
            return self._sum_over_heads(pair, score_distance(student, teacher), taught[None])
        return super()._loss(pair, student, teacher)

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """Ones on the diagonal."""
        alignment = constant_alignment(student, teacher)
        alignment.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        return alignment


class MeanOfHeads(AlignedAttention):
    """Every teacher head teaches all student heads alike: AMAD without similarity.

        a_ij = 1 / Hs

    The limit of AMAD as its temperature grows; an ablation. Its ``kl`` has the gradient of the divergence between the
    means over the heads of both models, times Ht: see :class:`amad.losses.head_mean.HeadMean`. The two losses are in
    :class:`amad.losses.aligned.AlignedAttention`, summed over all teacher heads.
    """

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """The same everywhere."""
        return constant_alignment(student, teacher, 1 / student.n_heads)


class NearestHead(AlignedAttention):
    """Every teacher head teaches the one student head that is most like it, per sample.

        a_ij = 1 for the j with the largest cosine w_ij (the first of several), else 0

    The limit of AMAD as its temperature goes to zero; an ablation. A student head may learn from many teacher heads or
    from none. No gradient flows through the choice. The two losses are in
    :class:`amad.losses.aligned.AlignedAttention`, summed over all teacher heads.
    """

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """One where the cosine is largest."""
        cosine = cosines(gram()).cross
        return functional.one_hot(cosine.detach().argmax(-1), student.n_heads).to(cosine.dtype)


class AssignedHeads(AlignedAttention):
    """One to one in the best order: the pairing of heads with the largest sum of cosines, per sample.

        a_ij = 1 if (i, j) is in the assignment that maximises sum w_ij, else 0

    Kuhn's Hungarian method; an ablation. Teacher heads that are left over teach nobody, and student heads that are left
    over learn from nobody, so the value is the sum over min(Ht, Hs) teacher heads. No gradient flows through the
    choice, which is made on the CPU. The two losses are in :class:`amad.losses.aligned.AlignedAttention`.
    """

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """Ones at the assigned pairs."""
        cosine = cosines(gram()).cross.detach()
        alignment = torch.zeros_like(cosine)
        # A loss that is no number stays so; the assignment must not be what stops the run.
        for sample, likeness in enumerate(cosine.nan_to_num().cpu().double().numpy()):
            teachers, students = linear_sum_assignment(likeness, maximize=True)
            alignment[sample, teachers, students] = 1.0
        return alignment
