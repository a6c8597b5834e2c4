"""Teacher maps taught to mixtures of student maps, whoever says how they are mixed."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import RecipeError
from amad.losses.figures import AlignmentFigures, alignment_figures
from amad.losses.objective import Captured
from amad.losses.pairs import PairTerm, check_choice
from amad.ops.alignment import cosines
from amad.ops.attention_gram import AttentionGram, attention_gram
from amad.ops.fused import Operators, fused_loss
from amad.ops.resampling import common_dtype

_TINY = 1e-30


class AlignedAttention(PairTerm):
    """Each teacher head is compared with its own mixture of student heads, by the weights a_ij of a subclass.

    Per sample and pair of sites, with teacher maps T_i, student maps S_j, flattened t_i and s_j:

    - ``kl``: sum_i KL( T_i || sum_j a_ij S_j ) in nats, the mean over query rows;
    - ``mse``: sum_i | t_i / |t_i| - sum_j a_ij s_j / |s_j| |^2, on maps of norm one.

    These are the forms of Zhao et al. 2024 (doi 10.1609/aaai.v38i7.28583), equations 9 and 6, so that methods which
    differ by their alignment differ by nothing else. A teacher head whose weights are all zero teaches nobody and
    adds nothing. Otherwise a head's weights sum to one. Rows of padded queries are left out.

    Args:
        pairs: The sites to compare; see :class:`amad.losses.pairs.PairTerm`.
        variant: ``kl`` or ``mse``.

    Raises:
        RecipeError: if the variant is unknown, or as :class:`amad.losses.pairs.PairTerm`.
    """

    variants: ClassVar[tuple[str, ...]] = ("kl", "mse")

    def __init__(self, pairs: Sequence[SitePair], *, variant: str = "kl") -> None:
        super().__init__(pairs)
        check_choice("variant", variant, self.variants)
        self.variant = variant
        self.head_weights: dict[SiteKey, Tensor] = {}

    def weigh_heads(self, importance: Mapping[SiteKey, Float[Tensor, " head"]]) -> None:
        """Let each teacher head count in the sum by what it is worth, instead of all alike.

            sum_i c_i loss_i,    c_i = Ht max(I_i, 0) / sum_l max(I_l, 0)

        so that the weights of a site sum to its number of heads, as without. Where some heads teach nobody, Ht and the
        sum are over those that do. Ours, beyond the paper.

        Args:
            importance: I of every head of the teacher's sites; see :mod:`amad.losses.importance`.

        Raises:
            RecipeError: if a paired site is missing, none of its heads is worth anything, or one is worth no number.
        """
        for key in dict.fromkeys(pair.teacher for pair in self.pairs):
            worth = importance[key].clamp(min=0) if key in importance else torch.zeros(1)
            if not worth.isfinite().all():
                raise RecipeError(
                    f"heads of the teacher's {key} are worth {worth.tolist()}, and each must be a finite number. "
                    "Measure their importance again, or leave head_weights uniform."
                )
            if not worth.sum() > 0:
                raise RecipeError(
                    f"no head of the teacher's {key} is worth anything, so they cannot be weighed by it. Pair another "
                    f"layer (pairing: important), or leave head_weights uniform."
                )
            self.head_weights[key] = len(worth) * worth / worth.sum()

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """The weights a_ij, of each sample or one for all; ``gram`` gives the inner products if it is asked to.

        A row of zeros drops that teacher head.
        """
        raise NotImplementedError(f"{type(self).__name__} has no alignment")

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        def loss(operators: Operators) -> Tensor:
            return self._mixture_loss(pair, operators, self.align(pair, student, teacher, operators.gram))

        return fused_loss(student, teacher, loss)

    def _mixture_loss(
        self, pair: SitePair, operators: Operators, alignment: Tensor
    ) -> Float[Tensor, " batch"]:
        taught = alignment.detach().any(-1)
        # A mixture of nothing has no divergence: heads that are dropped take any, and their value is left out.
        alignment = alignment.masked_fill(~taught[..., None], 1 / alignment.shape[-1])
        is_mse = self.variant == "mse"
        values = mixture_distance(operators.gram(), alignment) if is_mse else operators.kl(alignment)
        return self._sum_over_heads(pair, values.masked_fill(~taught, 0.0), taught)

    def _sum_over_heads(
        self,
        pair: SitePair,
        values: Float[Tensor, "batch teacher"],
        taught: Bool[Tensor, "#batch teacher"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The sum over the teacher's heads, each by its weight; all teach where ``taught`` is None."""
        weights = self.head_weights.get(pair.teacher)
        if weights is None:
            return values.sum(-1)
        weights = weights.to(values)
        if taught is not None:
            weights = weights * taught
            # Zero where none of those that teach is worth anything: there is nothing to learn from them.
            weights = weights * taught.sum(-1, keepdim=True) / weights.sum(-1, keepdim=True).clamp(min=_TINY)
        return (values * weights).sum(-1)

    @torch.no_grad()
    def diagnose(self, student: Captured, teacher: Captured) -> dict[SitePair, AlignmentFigures]:
        """Who teaches whom on this batch, for every pair; what each figure is says :class:`AlignmentFigures`."""
        figures = {}
        for pair in self.pairs:
            records = self.records(pair, student, teacher)
            with torch.autocast(records[0].query.device.type, enabled=False):
                gram = attention_gram(*records)
                alignment, counted = self._alignment_of(pair, *records, gram)
                figures[pair] = alignment_figures(*records, gram, alignment, counted)
        return figures

    def _alignment_of(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord, gram: AttentionGram
    ) -> tuple[Float[Tensor, "sample teacher student"], Bool[Tensor, " sample"]]:
        """The weights of each sample, and which samples count."""
        alignment = self.align(pair, student, teacher, lambda: gram)
        return alignment.expand(student.n_batch, -1, -1), gram.teacher_norm.sum(-1) > 0


def constant_alignment(
    student: AttentionRecord, teacher: AttentionRecord, value: float = 0.0
) -> Float[Tensor, "1 teacher student"]:
    """One alignment for all samples, with the same weight everywhere."""
    dtype, device = common_dtype(student, teacher), student.query.device
    return torch.full((1, teacher.n_heads, student.n_heads), value, dtype=dtype, device=device)


def mixture_distance(
    gram: AttentionGram, alignment: Float[Tensor, "#batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """Squared distance of each teacher map from its mixture of student maps, all of norm one.

        | t_i/|t_i| - sum_j a_ij s_j/|s_j| |^2  =  1 - 2 sum_j a_ij w_ij + sum_jl a_ij g_jl a_il

    with the cosines w of teacher and student maps and g of student maps; Zhao et al. 2024, equations 4-6. Zero where
    the teacher's map is zero.
    """
    cosine = cosines(gram)
    nearness = 2 * cosine.cross - torch.matmul(alignment, cosine.student)
    return cosine.teacher - (alignment * nearness).sum(-1)
