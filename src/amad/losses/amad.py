"""Attention Map Alignment Distillation: every teacher head teaches every student head, as far as they are alike."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, RecipeError
from amad.losses.figures import AlignmentFigures, alignment_figures
from amad.losses.objective import Captured, Targets, Term, TermValue
from amad.losses.projection import Form, Projection, over_projected_blocks
from amad.ops.aligned_kl import row_aligned_kl
from amad.ops.aligned_kl.reference import kl_sums, mean_over_rows
from amad.ops.alignment import alignment_weights, check_temperature, cosines
from amad.ops.attention_gram import AttentionGram, attention_gram, attention_row_grams
from amad.ops.attention_gram.reference import gram_of_block, sum_of_grams
from amad.ops.fused import Operators, fused_loss

Variant = Literal["mse", "kl", "projected", "token"]

PROJECTION_BYTES_LIMIT = 1 << 30
"""The most that one projection may take: 1 GiB, which holds the full one of maps of up to 128 x 128 tokens."""


class AttentionAlignment(Term):
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

    needs = frozenset({"records"})
    needs_teacher = True

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
        super().__init__()
        check_temperature(temperature)
        _check_choice("variant", variant, get_args(Variant))
        _check_choice("projection", projection, get_args(Form))
        if not pairs:
            raise RecipeError(
                "attention is compared at pairs of sites, and there are none. Pair at least one stack."
            )
        for pair in pairs:
            if not 0 <= pair.weight < float("inf"):
                raise RecipeError(
                    f"the weight of {pair.student} is {pair.weight}: it must be 0 or more, and finite."
                )
        self.pairs = tuple(pairs)
        self.variant: Variant = variant
        self.temperature = temperature
        self.detach_alignment = detach_alignment
        self.projection: Form = projection
        self.projection_bytes_limit = projection_bytes_limit
        self.projections = nn.ModuleDict()
        for pair, (n_queries, n_keys) in (projection_shapes or {}).items():
            self._add_projection(pair, n_queries, n_keys)

    def prepare(self, student: Mapping[SiteKey, AttentionRecord]) -> None:
        """Make the projections that are missing, for maps of the size of these records.

        Does nothing for variants without projections. Call it before an optimizer is made.

        Raises:
            RecipeError: if a projection is over the limit.
            CaptureError: if a site of a pair was not recorded.
        """
        if self.variant == "projected":
            for pair in self.pairs:
                if _name(pair) not in self.projections and pair.weight:
                    record = _find(student, pair.student, "student")
                    self._add_projection(pair, record.n_queries, record.n_keys)
                    self.projections.to(record.query.device)

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum over the samples of this batch; see the class.

        Raises:
            CaptureError: if a site of a pair was not recorded.
            ShapeError: if the tokens of student and teacher differ and cannot be matched.
            RecipeError: if projections were not made.
        """
        total = torch.zeros((), device=targets.labels.device)
        for pair in self.pairs:
            if pair.weight:
                loss = self.pair_loss(pair, *self._records(pair, student, teacher))
                total = total + pair.weight / len(self.pairs) * loss.sum()
        return TermValue(total, "sample")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pair_loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        """The loss of each sample at one pair of sites, before the weight of the pair."""
        with torch.autocast(student.query.device.type, enabled=False):
            if self.variant == "token":
                return row_aligned_kl(student, teacher, self.temperature, self.detach_alignment).sum(-1)
            if self.variant == "projected":
                return self._projected_loss(pair, student, teacher)
            return fused_loss(student, teacher, self._mixture_loss)

    def _mixture_loss(self, operators: Operators) -> Float[Tensor, " batch"]:
        gram = operators.gram()
        alignment = self._align(gram)
        if self.variant == "mse":
            return mixture_distance(gram, alignment).sum(-1)
        return operators.kl(alignment).sum(-1)

    def _projected_loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        alignment = self._align(self._projected_gram(pair, student, teacher))
        sums = over_projected_blocks(
            student, teacher, self._projection(pair), lambda block: kl_sums(block, alignment)
        )
        return mean_over_rows(sums).sum(-1)

    def _projected_gram(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> AttentionGram:
        return sum_of_grams(over_projected_blocks(student, teacher, self._projection(pair), gram_of_block))

    @torch.no_grad()
    def diagnose(self, student: Captured, teacher: Captured) -> dict[SitePair, AlignmentFigures]:
        """Who teaches whom on this batch, for every pair; what each figure is says :class:`AlignmentFigures`."""
        figures = {}
        for pair in self.pairs:
            records = self._records(pair, student, teacher)
            device = records[0].query.device
            with torch.autocast(device.type, enabled=False):
                gram = attention_gram(*records)
                if self.variant == "token":
                    rows = attention_row_grams(*records)
                    alignment, counted = self._align(rows), rows.teacher_norm.sum(-1) > 0
                else:
                    projected = self.variant == "projected" and pair.weight > 0
                    own = self._projected_gram(pair, *records) if projected else gram
                    alignment, counted = self._align(own), gram.teacher_norm.sum(-1) > 0
                figures[pair] = alignment_figures(*records, gram, alignment, counted)
        return figures

    def _align(self, gram: AttentionGram) -> Tensor:
        alignment = alignment_weights(gram, self.temperature)
        return alignment.detach() if self.detach_alignment else alignment

    def _records(
        self, pair: SitePair, student: Captured, teacher: Captured | None
    ) -> tuple[AttentionRecord, AttentionRecord]:
        teacher_records = {} if teacher is None else teacher.records
        return _find(student.records, pair.student, "student"), _find(
            teacher_records, pair.teacher, "teacher"
        )

    def _projection(self, pair: SitePair) -> Projection:
        if _name(pair) not in self.projections:
            raise RecipeError(
                f"the projection of {pair.student} was not made. Give projection_shapes, or call prepare() with the "
                "records of one batch before the optimizer is made."
            )
        return cast(Projection, self.projections[_name(pair)])

    def _add_projection(self, pair: SitePair, n_queries: int, n_keys: int) -> None:
        if pair not in self.pairs:
            raise RecipeError(
                f"projection_shapes names {pair.student} from {pair.teacher}, which is not paired."
            )
        self.projections[_name(pair)] = Projection(
            n_queries, n_keys, self.projection, self.projection_bytes_limit
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for pair in self.pairs:
            saved = state_dict.get(f"{prefix}projections.{_name(pair)}.map_size")
            if saved is not None and _name(pair) not in self.projections:
                self._add_projection(pair, *saved.tolist())
        super()._load_from_state_dict(state_dict, prefix, *args)


def mixture_distance(
    gram: AttentionGram, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """Squared distance of each teacher map from its mixture of student maps, all of norm one.

        | t_i/|t_i| - sum_j a_ij s_j/|s_j| |^2  =  1 - 2 sum_j a_ij w_ij + sum_jl a_ij g_jl a_il

    with the cosines w of teacher and student maps and g of student maps; Zhao et al. 2024, equations 4-6. Zero where
    the teacher's map is zero.
    """
    cosine = cosines(gram)
    nearness = 2 * cosine.cross - torch.matmul(alignment, cosine.student)
    return cosine.teacher - (alignment * nearness).sum(-1)


def _find(records: Mapping[SiteKey, AttentionRecord], key: SiteKey, who: str) -> AttentionRecord:
    if key not in records:
        recorded = ", ".join(map(str, records)) or "none"
        raise CaptureError(
            f"{key} of the {who} was not recorded, but {recorded}. Record every site that is paired."
        )
    return records[key]


def _name(pair: SitePair) -> str:
    """A name that a module may have, without dots."""
    student, teacher = (f"{key.stack.replace('.', '_')}_{key.layer}" for key in (pair.student, pair.teacher))
    return f"{student}__from__{teacher}"


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise RecipeError(f"{name} {value!r} is none of {', '.join(known)}.")
