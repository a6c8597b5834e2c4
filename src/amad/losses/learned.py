"""A trained mixture of student heads for every teacher head."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.losses.aligned import AlignedAttention, constant_alignment
from amad.losses.pairs import PairMatrices, find_record
from amad.ops.attention_gram import AttentionGram
from amad.ops.fused import PlainOperators
from amad.ops.resampling import common_dtype


class LearnedMixture(AlignedAttention):
    """Each teacher head teaches a mixture of student heads that is trained along with the student.

        a_ij = softmax_j( W_ij ),    W of Ht x Hs for each pair of sites, zero at the start

    After Align-to-Distill (Jin et al. 2024, arXiv:2403.01479). Its published code maps the student's heads of all
    layers to the teacher's of all layers by a 1x1 convolution without constraint and compares softmaxes over whole
    maps. Here, so that it differs from AMAD by its weights alone, there is a matrix for each pair of sites, its rows
    are weights that sum to one, and the two losses are those of :class:`amad.losses.aligned.AlignedAttention`, summed
    over all teacher heads. It starts as ``mean``, and its weights are the same for every sample. They are parameters
    of the term: saved with a checkpoint, not in the student.

    Call :meth:`prepare` with records of one batch before an optimizer is made.
    """

    def __init__(self, pairs: Sequence[SitePair], *, variant: str = "kl") -> None:
        super().__init__(pairs, variant=variant)
        self.scores = PairMatrices(pairs)

    @property
    def is_trained(self) -> bool:
        """It is."""
        return True

    def prepare(
        self,
        student: Mapping[SiteKey, AttentionRecord],
        teacher: Mapping[SiteKey, AttentionRecord] | None = None,
    ) -> None:
        """Make the matrices that are missing, for records with so many heads.

        Raises:
            CaptureError: if a site of a pair was not recorded.
        """
        for pair in self.pairs:
            if pair.weight:
                mine = find_record(student, pair.student, "student")
                its = find_record(teacher or {}, pair.teacher, "teacher")
                self.scores.make(pair, torch.zeros(its.n_heads, mine.n_heads, device=mine.query.device))

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """The trained weights; uniform for a pair of weight 0, which has none.

        Raises:
            RecipeError: if they were not made.
        """
        if not pair.weight:
            return constant_alignment(student, teacher, 1 / student.n_heads)
        return self.scores.of(pair).to(common_dtype(student, teacher)).softmax(-1)[None]

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        operators = PlainOperators(student, teacher)
        return self._mixture_loss(pair, operators, self.align(pair, student, teacher, operators.gram))
