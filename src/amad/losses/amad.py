"""Attention Map Alignment Distillation: every teacher head teaches every student head, as far as they are alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, get_args

from jaxtyping import Bool, Float
from torch import Tensor, nn

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import RecipeError
from amad.losses.aligned import AlignedAttention
from amad.losses.pairs import check_choice, find_record, pair_name
from amad.losses.projection import Form, Projection, over_projected_blocks
from amad.ops.aligned_kl import row_aligned_kl
from amad.ops.aligned_kl.reference import kl_sums, mean_over_rows
from amad.ops.alignment import alignment_weights, check_temperature
from amad.ops.attention_gram import AttentionGram, attention_row_grams
from amad.ops.attention_gram.reference import gram_of_block, sum_of_grams

Variant = Literal["mse", "kl", "projected", "token"]

PROJECTION_BYTES_LIMIT = 1 << 30
"""The most that one projection may take: 1 GiB, which holds the full one of maps of up to 128 x 128 tokens."""


class AttentionAlignment(AlignedAttention):
    """The loss of Zhao et al., "No Head Left Behind", AAAI 2024 (doi 10.1609/aaai.v38i7.28583).

    Per sample and pair of sites, with teacher maps T_i, student maps S_j, flattened t_i and s_j, and

        a_ij = softmax_j( <t_i, s_j> / (|t_i| |s_j|) / temperature )                       equations 1-3

    - ``mse``: sum_i | t_i / |t_i| - sum_j a_ij s_j / |s_j| |^2, between 0 and twice the teacher's heads; 4-6.
    - ``kl``: sum_i KL( T_i || sum_j a_ij S_j ) in nats, the mean over query rows; equation 9. The paper writes it on
      maps of norm one, on which the minimum is at S proportional to the root of T and the heads become all the same.
      Here maps keep rows that sum to one; only the cosines use norms.
    - ``projected``: the same with S~ = ReLU(S W^T + b), trained, in the place of S; equations 10-11. Rows of S~ are
      divided by their sum. See :class:`amad.losses.projection.Projection`.
    - ``token``: the same as ``kl`` with an alignment for each query row; equation 12, averaged over rows.

    The term is the sum over samples of the mean over pairs of weight times loss. Rows of padded queries are left out.
    With temperature 1 it is not zero for equal maps: the softmax of cosines within [0, 1] is nearly flat.

    Args:
        pairs: The sites to compare; a pair of weight 0 is left out of the sum but counted in the mean.
        variant: Which of the four.
        temperature: Of the softmax over the student's heads; the paper's is 1.
        detach_alignment: Stop gradients through a_ij; the paper lets them flow.
        projection: For ``projected``: ``full``, the paper's, for maps of one fixed size; or ``factored``, ours.
        projection_bytes_limit: The most that one projection may take.
        projection_shapes: For ``projected``: (queries, keys) of the student's map of each pair. If it is left out,
            call :meth:`prepare` with records of one batch before an optimizer is made.

    Raises:
        RecipeError: if an argument is out of its range or a projection over the limit.
    """

    variants: ClassVar[tuple[str, ...]] = get_args(Variant)

    def __init__(
        self,
        pairs: Sequence[SitePair],
        *,
        variant: Variant = "kl",
        temperature: float = 1.0,
        detach_alignment: bool = False,
        projection: Form = "full",
        projection_bytes_limit: int = PROJECTION_BYTES_LIMIT,
        projection_shapes: Mapping[SitePair, tuple[int, int]] | None = None,
    ) -> None:
        check_temperature(temperature)
        check_choice("projection", projection, get_args(Form))
        super().__init__(pairs, variant=variant)
        self.temperature = temperature
        self.detach_alignment = detach_alignment
        self.projection: Form = projection
        self.projection_bytes_limit = projection_bytes_limit
        self.projections = nn.ModuleDict()
        for pair, (n_queries, n_keys) in (projection_shapes or {}).items():
            self._add_projection(pair, n_queries, n_keys)

    @property
    def is_trained(self) -> bool:
        """Whether there are projections."""
        return self.variant == "projected"

    def prepare(
        self,
        student: Mapping[SiteKey, AttentionRecord],
        teacher: Mapping[SiteKey, AttentionRecord] | None = None,
    ) -> None:
        """Make the projections that are missing, for maps of the size of these records.

        Does nothing for variants without projections. Call it before an optimizer is made.

        Raises:
            RecipeError: if a projection is over the limit.
            CaptureError: if a site of a pair was not recorded.
        """
        if self.variant == "projected":
            for pair in self.pairs:
                if pair_name(pair) not in self.projections and pair.weight:
                    record = find_record(student, pair.student, "student")
                    self._add_projection(pair, record.n_queries, record.n_keys)
                    self.projections.to(record.query.device)

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """Softmax of cosines; see the class."""
        return self._weights(gram())

    def _weights(self, gram: AttentionGram) -> Float[Tensor, "sample teacher student"]:
        alignment = alignment_weights(gram, self.temperature)
        return alignment.detach() if self.detach_alignment else alignment

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        if self.variant == "token":
            values = row_aligned_kl(student, teacher, self.temperature, self.detach_alignment)
            return self._sum_over_heads(pair, values)
        if self.variant == "projected":
            return self._projected_loss(pair, student, teacher)
        return super()._loss(pair, student, teacher)

    def _projected_loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        alignment = self._weights(self._projected_gram(pair, student, teacher))
        sums = over_projected_blocks(
            student, teacher, self._projection(pair), lambda block: kl_sums(block, alignment)
        )
        return self._sum_over_heads(pair, mean_over_rows(sums))

    def _projected_gram(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> AttentionGram:
        return sum_of_grams(over_projected_blocks(student, teacher, self._projection(pair), gram_of_block))

    def _alignment_of(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord, gram: AttentionGram
    ) -> tuple[Float[Tensor, "sample teacher student"], Bool[Tensor, " sample"]]:
        if self.variant == "token":
            rows = attention_row_grams(student, teacher)
            return self._weights(rows), rows.teacher_norm.sum(-1) > 0
        projected = self.variant == "projected" and pair.weight > 0
        own = self._projected_gram(pair, student, teacher) if projected else gram
        return self._weights(own), gram.teacher_norm.sum(-1) > 0

    def _projection(self, pair: SitePair) -> Projection:
        if pair_name(pair) not in self.projections:
            raise RecipeError(
                f"the projection of {pair.student} was not made. Give projection_shapes, or call prepare() with the "
                "records of one batch before the optimizer is made."
            )
        return cast(Projection, self.projections[pair_name(pair)])

    def _add_projection(self, pair: SitePair, n_queries: int, n_keys: int) -> None:
        if pair not in self.pairs:
            raise RecipeError(
                f"projection_shapes names {pair.student} from {pair.teacher}, which is not paired."
            )
        self.projections[pair_name(pair)] = Projection(
            n_queries, n_keys, self.projection, self.projection_bytes_limit
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for pair in self.pairs:
            saved = state_dict.get(f"{prefix}projections.{pair_name(pair)}.map_size")
            if saved is not None and pair_name(pair) not in self.projections:
                self._add_projection(pair, *saved.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)
