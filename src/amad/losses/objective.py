"""The whole loss: named terms, their weights, and what each is divided by."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from amad.axes import SiteKey, SitePair
from amad.capture.extras import Extra
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, RecipeError, ShapeError

IGNORED_LABEL = -100
"""Positions with this label are no targets."""

Unit = Literal["token", "sample"]
"""What a term sums over, and is divided by the number of."""


@dataclass(frozen=True)
class Captured:
    """What one model gave in one forward pass.

    Attributes:
        logits: Scores of the vocabulary at each target position.
        records: What its attention sites did.
        losses: Losses of each sample that it computed itself.
        figures: Sum and number of what it measured itself.
    """

    logits: Float[Tensor, "batch token vocab"] | None = None
    records: Mapping[SiteKey, AttentionRecord] = field(default_factory=dict)
    losses: Mapping[str, Float[Tensor, " sample"]] = field(default_factory=dict)
    figures: Mapping[str, Float[Tensor, " 2"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Targets:
    """The ground truth of a batch.

    A sample is what is read once. It may have several rows of labels, one after the other: all answers to a question.

    Attributes:
        labels: The right token at each position, or -100 where there is none.
        weights: Weight of each row in the task loss; 1 when None.
        kinds: Number of the kind of each row, where a batch mixes several.
        row_counts: How many rows each sample has, at least one; one each when None.
    """

    labels: Int[Tensor, "row token"]
    weights: Float[Tensor, " row"] | None = None
    kinds: Int[Tensor, " row"] | None = None
    row_counts: Int[Tensor, " sample"] | None = None

    @property
    def n_samples(self) -> int:
        """Samples."""
        return len(self.labels if self.row_counts is None else self.row_counts)

    def sum_over_samples(self, losses: Float[Tensor, " one"]) -> Float[Tensor, ""]:
        """The sum of losses of samples; of losses of rows, the sum over samples of the mean over their rows.

        Of losses of windows, as in Swin, the sum over samples of the mean over their windows, which follow one another.

        Raises:
            ShapeError: if there are neither as many losses as samples or rows, nor equally many for each sample.
        """
        if len(losses) == self.n_samples:
            return losses.sum()
        if self.row_counts is None or len(losses) != len(self.labels):
            if len(losses) % self.n_samples or not len(losses):
                raise ShapeError(
                    f"{len(losses)} losses belong neither to the {self.n_samples} samples of a batch nor to its "
                    f"{len(self.labels)} rows of labels. Give one per sample or per row, or equally many per sample."
                )
            return losses.reshape(self.n_samples, -1).mean(1).sum()
        return (losses / self.row_counts.repeat_interleave(self.row_counts)).sum()


class Counts(NamedTuple):
    """Totals over a whole optimiser step: every accumulated batch of every process.

    Attributes:
        tokens: Target tokens: labels that are not -100.
        samples: Samples.
    """

    tokens: int | float | Tensor
    samples: int | float | Tensor

    @classmethod
    def of(cls, *targets: Targets, shift_labels: bool = False) -> "Counts":
        """The counts of these batches together; ``shift_labels`` as the terms have it."""
        first = 1 if shift_labels else 0
        tokens = sum(int((one.labels[:, first:] != IGNORED_LABEL).sum()) for one in targets)
        return cls(tokens, sum(one.n_samples for one in targets))


class Figure(NamedTuple):
    """A mean that is only shown: what to add up over batches, and what to divide the sum by."""

    total: Float[Tensor, ""]
    divisor: Float[Tensor, ""]


class TermValue(NamedTuple):
    """A term on one batch.

    Attributes:
        total: The sum over its samples or tokens.
        unit: Which of the two they are.
        figures: What else there is to show of the batch, by name; the same names for every batch.
    """

    total: Float[Tensor, ""]
    unit: Unit
    figures: Mapping[str, Figure] = MappingProxyType({})


class Term(nn.Module):
    """One part of the objective. Its forward takes student, teacher and targets and gives a :class:`TermValue`.

    Attributes:
        needs: What it reads of the student, and of the teacher if it needs one: ``logits``, ``records``, and what
            records then hold beside the map: ``value``, ``hidden``, ``mixing``.
        needs_teacher: It compares with a teacher.
        pairs: The sites whose records it reads.
    """

    needs: frozenset[str] = frozenset({"logits"})
    needs_teacher: bool = False
    pairs: tuple[SitePair, ...] = ()

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum of the term over this batch."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class ObjectiveValue(NamedTuple):
    """The loss of one batch.

    Attributes:
        loss: What to differentiate.
        parts: Per term, its value before its weight, detached. Over the batches and processes of a step they add
            up to the mean over all its samples or tokens.
        figures: Those of all terms.
    """

    loss: Float[Tensor, ""]
    parts: dict[str, Float[Tensor, ""]]
    figures: dict[str, Figure]


class Objective(nn.Module):
    """A weighted sum of terms.

        L = sum_n weight_n total_n / count[unit_n]

    The counts are those of the whole optimiser step, so gradients of micro-batches and of processes, added up, are
    the gradient of one large batch, whatever the share of padding in each.

    A term of weight 0 is computed and shown but moves nothing. It stays in the graph with zero gradient, so that data
    parallel wrappers see every parameter of the student used; where it is not finite it is left out, as 0 times
    infinity would not be zero.

    Args:
        terms: Per name, the weight and the term.

    Raises:
        RecipeError: if there is no term, or a weight is negative or not finite.
    """

    def __init__(self, terms: Mapping[str, tuple[float, Term]]) -> None:
        super().__init__()
        if not terms:
            raise RecipeError(
                "an objective needs at least one term and has none. Give a task, logits or attention term."
            )
        for name, (weight, _) in terms.items():
            if not 0 <= weight < math.inf:
                raise RecipeError(
                    f"the weight of term {name!r} is {weight}: it must be 0 or more, and finite."
                )
        self.weights = {name: float(weight) for name, (weight, _) in terms.items()}
        self.terms = nn.ModuleDict({name: term for name, (_, term) in terms.items()})

    @property
    def needs(self) -> frozenset[str]:
        """What the terms read; see :class:`Term`."""
        return frozenset().union(*(term.needs for term in self._terms().values()))

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with a teacher."""
        return any(term.needs_teacher for term in self._terms().values())

    @property
    def pairs(self) -> tuple[SitePair, ...]:
        """The pairs of sites that the terms compare, each once."""
        return tuple(dict.fromkeys(pair for term in self._terms().values() for pair in term.pairs))

    @property
    def extras(self) -> frozenset[Extra]:
        """What the terms read of records beside the map."""
        return frozenset(get_args(Extra)) & self.needs

    def forward(
        self, student: Captured, teacher: Captured | None, targets: Targets, counts: Counts
    ) -> ObjectiveValue:
        """The loss of this batch as its part of the whole optimiser step.

        Raises:
            RecipeError: if a term needs a teacher and there is none.
            CaptureError: if a term needs logits or records that were not captured.
        """
        device = targets.labels.device
        loss = torch.zeros((), device=device)
        parts: dict[str, Tensor] = {}
        figures: dict[str, Figure] = {}
        with torch.autocast(device.type, enabled=False):
            for name, term in self._terms().items():
                _check_captured(name, term, student, teacher)
                total, unit, shown = term(student, teacher, targets)
                figures |= shown
                value = total / _divisor(counts.tokens if unit == "token" else counts.samples)
                parts[name] = value.detach()
                weight = self.weights[name]
                if weight or bool(torch.isfinite(value)):
                    loss = loss + weight * value
        return ObjectiveValue(loss, parts, figures)

    def _terms(self) -> dict[str, Term]:
        return {name: term for name, term in self.terms.items() if isinstance(term, Term)}


def _divisor(count: int | float | Tensor) -> int | float | Tensor:
    """No target at all makes a sum of zero, which stays zero."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def _check_captured(name: str, term: Term, student: Captured, teacher: Captured | None) -> None:
    if term.needs_teacher and teacher is None:
        raise RecipeError(
            f"term {name!r} compares with a teacher, and there is none. Give one, or drop the term."
        )
    seen = (
        {"student": student}
        if teacher is None or not term.needs_teacher
        else {"student": student, "teacher": teacher}
    )
    for who, captured in seen.items():
        missing = [
            what
            for what, value in (("logits", captured.logits), ("records", captured.records or None))
            if what in term.needs and value is None
        ]
        if missing:
            raise CaptureError(
                f"term {name!r} needs {' and '.join(missing)} of the {who}, and none were captured."
            )
