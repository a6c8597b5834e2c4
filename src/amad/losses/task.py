"""Cross entropy with the ground truth."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from amad.errors import RecipeError, ShapeError
from amad.losses.objective import IGNORED_LABEL, Captured, Figure, Targets, Term, TermValue, Unit


class TaskLoss(Term):
    """Cross entropy of the student's logits with the labels, in nats.

    With ce_bt of the tokens t of row b whose label is not -100, n_b of them, and its weight w_b (1 if none):

        token:   sum_b w_b sum_t ce_bt              divided by the number of target tokens, whatever their weights
        sample:  sum_b w_b (1 / n_b) sum_t ce_bt    divided by the number of samples
        sum:     sum_b w_b sum_t ce_bt              divided by the number of samples

    ``sample`` is the form that VL-T5 (Cho et al. 2021, arXiv:2102.02779) has for questions, with the answer's soft
    score as the weight; ``sum`` is BLIP's (Li et al. 2022, arXiv:2201.12086; models/blip_vqa.py of its code), with a
    row per answer and the share of annotators who gave it as the weight. A sample without a target gives zero and, in
    ``sample`` and ``sum``, still counts as a sample.

    It reads logits and divides nothing, because models that average their own loss over the batch they see weigh
    micro-batches of different length wrongly.

    Args:
        reduction: ``token``, ``sample`` or ``sum``.
        shift_labels: Position t predicts label t + 1, as in decoder-only models; otherwise label t.
        label_smoothing: Share of the target that is spread over the vocabulary.
        kinds: Names of the kinds of samples that batches mix. Of each, ``loss_KIND`` is shown, the same mean over
            the samples of this kind alone, and ``accuracy_KIND``, the share of its samples whose every token is
            the most likely one after those before it, in percent: greedy decoding would give these targets exactly.

    Raises:
        RecipeError: if the reduction is unknown or the smoothing outside of [0, 1).
    """

    needs = frozenset({"logits"})

    def __init__(
        self,
        reduction: Literal["token", "sample", "sum"] = "token",
        shift_labels: bool = False,
        label_smoothing: float = 0.0,
        kinds: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if reduction not in ("token", "sample", "sum"):
            raise RecipeError(
                f"reduction {reduction!r} of the task loss is none of 'token', 'sample', 'sum'."
            )
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing = {label_smoothing}: it is a share, 0 or more and below 1.")
        self.reduction = reduction
        self.shift_labels = shift_labels
        self.label_smoothing = label_smoothing
        self.kinds = tuple(kinds)

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum over this batch; see the class.

        Raises:
            ShapeError: if there are not as many labels as positions with logits.
        """
        logits, labels = aligned(student.logits, targets.labels, self.shift_labels)
        keep = labels != IGNORED_LABEL
        losses = nn.functional.cross_entropy(
            exact(logits[keep]), labels[keep], reduction="none", label_smoothing=self.label_smoothing
        )
        per_token = losses.new_zeros(labels.shape).masked_scatter(keep, losses)
        per_sample = per_token.sum(1)
        if self.reduction == "sample":
            per_sample = per_sample / keep.sum(1).clamp(min=1)
        if targets.weights is not None:
            per_sample = per_sample * targets.weights.to(per_sample.dtype)
        total = per_sample.sum()
        unit: Unit = "token" if self.reduction == "token" else "sample"
        if not self.kinds or targets.kinds is None:
            return TermValue(total, unit)
        with torch.no_grad():
            exact_match = ((logits.argmax(-1) == labels) | ~keep).all(1) & keep.any(1)
            divisors = keep.sum(1) if unit == "token" else torch.ones_like(keep[:, 0], dtype=torch.long)
            figures = {}
            for number, kind in enumerate(self.kinds):
                of_kind = (targets.kinds == number).to(per_sample.dtype)
                figures[f"loss_{kind}"] = Figure(
                    (of_kind * per_sample.detach()).sum(), (of_kind * divisors).sum()
                )
                figures[f"accuracy_{kind}"] = Figure(100 * (of_kind * exact_match).sum(), of_kind.sum())
        return TermValue(total, unit, figures)


def aligned(
    logits: Float[Tensor, "batch position vocab"] | None, labels: Int[Tensor, "batch token"], shift: bool
) -> tuple[Float[Tensor, "batch target vocab"], Int[Tensor, "batch target"]]:
    """The positions that predict something and what they should predict.

    Raises:
        ShapeError: if there are not as many labels as positions with logits.
    """
    if logits is None or logits.shape[:2] != labels.shape:
        got = None if logits is None else tuple(logits.shape)
        raise ShapeError(
            f"logits {got} do not have one position per label {tuple(labels.shape)}. Give labels of the same length."
        )
    return (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)


def exact(logits: Tensor) -> Tensor:
    """In float32, or in float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
