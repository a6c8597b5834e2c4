"""What every term has in common that compares a student with a teacher site by site."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, RecipeError
from amad.losses.objective import Captured, Targets, Term, TermValue
from amad.ops.resampling import check_same_batch


class PairTerm(Term):
    """The sum over samples of the mean over pairs of sites of weight times loss.

    Where a sample has several rows of labels, the loss of a decoder's pair is the mean over them.

    Args:
        pairs: The sites to compare; a pair of weight 0 is left out of the sum but counted in the mean.

    Raises:
        RecipeError: if there is no pair, or a weight is negative or not finite.
    """

    needs = frozenset({"records"})
    needs_teacher = True

    def __init__(self, pairs: Sequence[SitePair]) -> None:
        super().__init__()
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

    def weigh_heads(self, importance: Mapping[SiteKey, Float[Tensor, " head"]]) -> None:
        """Let each teacher head count by what it is worth, where the term is a sum over teacher heads.

        Raises:
            RecipeError: where it is not.
        """
        raise RecipeError(
            f"{type(self).__name__} is no sum over teacher heads, so they cannot be weighed. Leave head_weights out."
        )

    @property
    def is_trained(self) -> bool:
        """Whether the term trains something of its own, which :meth:`prepare` makes."""
        return False

    def prepare(
        self,
        student: Mapping[SiteKey, AttentionRecord],
        teacher: Mapping[SiteKey, AttentionRecord] | None = None,
    ) -> None:
        """Make what the term trains and has not made yet, for records like these. Call it before an optimizer is made.

        Args:
            student: The student's records.
            teacher: The teacher's records, where they matter.

        Raises:
            CaptureError: if a site of a pair was not recorded.
        """

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum over the samples of this batch; see the class.

        Raises:
            CaptureError: if a site of a pair was not recorded.
            ShapeError: if the tokens of student and teacher differ and cannot be matched.
            RecipeError: if what the term trains was not made.
        """
        total = torch.zeros((), device=targets.labels.device)
        for pair in self.pairs:
            if pair.weight:
                loss = self.pair_loss(pair, *self.records(pair, student, teacher))
                total = total + pair.weight / len(self.pairs) * targets.sum_over_samples(loss)
        return TermValue(total, "sample")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pair_loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        """The loss of each sample at one pair of sites, before the weight of the pair.

        Raises:
            ShapeError: if the records are of different batches.
        """
        check_same_batch(student, teacher)
        with torch.autocast(student.query.device.type, enabled=False):
            return self._loss(pair, student, teacher)

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def records(
        self, pair: SitePair, student: Captured, teacher: Captured | None
    ) -> tuple[AttentionRecord, AttentionRecord]:
        """The student's and the teacher's record of a pair.

        Raises:
            CaptureError: if either site was not recorded.
        """
        teacher_records = {} if teacher is None else teacher.records
        return find_record(student.records, pair.student, "student"), find_record(
            teacher_records, pair.teacher, "teacher"
        )


class PairMatrices(nn.ParameterDict):
    """One trained matrix for each of some pairs, by :func:`pair_name`, made when its size is known.

    Those that a checkpoint has are made when it is loaded.

    Args:
        pairs: The pairs that may have one.
    """

    def __init__(self, pairs: Iterable[SitePair]) -> None:
        super().__init__()
        self._known = {pair_name(pair) for pair in pairs}

    def make(self, pair: SitePair, start: Float[Tensor, "row column"]) -> None:
        """Let the matrix of a pair start so, unless it is there."""
        if pair_name(pair) not in self:
            self[pair_name(pair)] = nn.Parameter(start)

    def of(self, pair: SitePair) -> Float[Tensor, "row column"]:
        """The matrix of a pair.

        Raises:
            RecipeError: if it was not made.
        """
        if pair_name(pair) not in self:
            raise RecipeError(
                f"what is trained for {pair.student} was not made. Call prepare() with the records of one batch before "
                "the optimizer is made."
            )
        found: Tensor = self[pair_name(pair)]
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self._known - set(self.keys()):
            if f"{prefix}{name}" in state_dict:
                self[name] = nn.Parameter(torch.zeros_like(state_dict[f"{prefix}{name}"]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def find_record(records: Mapping[SiteKey, AttentionRecord], key: SiteKey, who: str) -> AttentionRecord:
    """The record of a site.

    Raises:
        CaptureError: if it was not recorded.
    """
    if key not in records:
        recorded = ", ".join(map(str, records)) or "none"
        raise CaptureError(
            f"{key} of the {who} was not recorded, but {recorded}. Record every site that is paired."
        )
    return records[key]


def pair_name(pair: SitePair) -> str:
    """A name that a module may have, without dots."""
    student, teacher = (f"{key.stack.replace('.', '_')}_{key.layer}" for key in (pair.student, pair.teacher))
    return f"{student}__from__{teacher}"


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a word that is none of those known.

    Raises:
        RecipeError: naming those that are.
    """
    if value not in known:
        raise RecipeError(f"{name} {value!r} is none of {', '.join(known)}.")
