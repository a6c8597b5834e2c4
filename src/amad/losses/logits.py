"""Distillation of the teacher's predictions."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from amad.errors import RecipeError, ShapeError
from amad.losses.objective import IGNORED_LABEL, Captured, Targets, Term, TermValue
from amad.losses.task import aligned, exact
from amad.ops.alignment import check_temperature


def forward_kl(
    student: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(teacher || student) at each token from log-probabilities, in nats.

        sum_v p_v (log p_v - log q_v),    p = exp(teacher), q = exp(student)

    Words to which the teacher gives nothing add nothing, whatever the student gives them. Infinite where the student
    gives nothing to a word that the teacher gives something.
    """
    return _kl(teacher, student)


def reverse_kl(
    student: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(student || teacher) at each token from log-probabilities, in nats.

        sum_v q_v (log q_v - log p_v),    p = exp(teacher), q = exp(student)

    The student is drawn to where the teacher's probability is large and may leave out the rest of it. Infinite where
    the teacher gives nothing to a word that the student gives something.
    """
    return _kl(student, teacher)


def jsd(
    student: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """Jensen-Shannon divergence at each token from log-probabilities, between 0 and log 2 nats.

        KL(p || m) / 2 + KL(q || m) / 2,    m = (p + q) / 2, p = exp(teacher), q = exp(student)

    Lin 1991 (doi 10.1109/18.61115). Symmetric and always finite. Where p and q are close it is a quarter of either KL,
    so it wants a larger weight.
    """
    given = (student > -math.inf) | (teacher > -math.inf)
    mean = torch.logaddexp(torch.where(given, student, 0.0), torch.where(given, teacher, 0.0)) - math.log(2)
    return (_kl(teacher, mean) + _kl(student, mean)) / 2


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """KL of distributions from their logarithms; the inner where keeps 0 times infinity out of the gradient."""
    mass = first.exp()
    some = mass > 0
    return (mass * (torch.where(some, first, 0.0) - torch.where(some, second, 0.0))).sum(-1)


Divergence = Literal["forward_kl", "reverse_kl", "jsd"]

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jsd": jsd,
}
"""By name: what is summed over the kept tokens, from log-probabilities of the student and of the teacher."""


class LogitsDistillation(Term):
    """Divergence between the teacher's and the student's next-token distributions, in nats.

        tau^2 sum_t D( softmax(z_teacher,t / tau), softmax(z_student,t / tau) ),    D = KL(teacher || student)

    over the tokens t whose label is not -100, divided by their number. Hinton et al. 2015 (arXiv:1503.02531), section
    2.1, which minimises the cross entropy: the teacher's entropy, which is constant, is subtracted here so that equal
    logits give zero. The factor tau^2 keeps the size of the gradient when tau changes. Weights of samples belong to
    the ground truth and are not used.

    Args:
        temperature: tau.
        divergence: D: ``forward_kl``, Hinton's; ``reverse_kl``, as in Gu et al. 2024 (arXiv:2306.08543), here at
            the tokens of the ground truth; or ``jsd``.
        shift_labels: Position t predicts label t + 1, as in :class:`amad.losses.task.TaskLoss`.

    Raises:
        RecipeError: if the temperature is not above zero or the divergence unknown.
    """

    needs = frozenset({"logits"})
    needs_teacher = True

    def __init__(
        self,
        temperature: float = 1.0,
        divergence: Divergence = "forward_kl",
        shift_labels: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        if divergence not in DIVERGENCES:
            raise RecipeError(f"divergence {divergence!r} is none of {', '.join(DIVERGENCES)}.")
        self.temperature = temperature
        self.divergence = divergence
        self.shift_labels = shift_labels

    def forward(self, student: Captured, teacher: Captured | None, targets: Targets) -> TermValue:
        """The sum over the kept tokens of this batch; see the class.

        Raises:
            ShapeError: if the vocabularies or the numbers of positions differ.
        """
        logits, labels = aligned(student.logits, targets.labels, self.shift_labels)
        soft_targets, _ = aligned(
            None if teacher is None else teacher.logits, targets.labels, self.shift_labels
        )
        if logits.shape[-1] != soft_targets.shape[-1]:
            raise ShapeError(
                f"student and teacher vocabularies differ: {logits.shape[-1]} != {soft_targets.shape[-1]}. "
                "Pick a student that shares the teacher's tokenizer."
            )
        keep = labels != IGNORED_LABEL
        student_log = (exact(logits[keep]) / self.temperature).log_softmax(-1)
        teacher_log = (exact(soft_targets.detach()[keep]) / self.temperature).log_softmax(-1)
        per_token = DIVERGENCES[self.divergence](student_log, teacher_log.to(student_log.dtype))
        return TermValue(self.temperature**2 * per_token.sum(), "token")
