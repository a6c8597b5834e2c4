"""Distillation of the teacher's predictions."""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from amad.errors import RecipeError, ShapeError
from amad.losses.objective import IGNORED_LABEL, Captured, Targets, Term, TermValue
from amad.losses.task import aligned, exact
from amad.ops.alignment import check_temperature

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(
    student: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"]
) -> Float[Tensor, " token"]:
    """KL(teacher || student) at each token from log-probabilities, in nats.

        sum_v p_v (log p_v - log q_v),    p = exp(teacher), q = exp(student)

    Words to which the teacher gives nothing add nothing, whatever the student gives them. Infinite where the student
    gives nothing to a word that the teacher gives something.
    """
    mass = teacher.exp()
    return torch.where(mass > 0, mass * (teacher - student), 0.0).sum(-1)


DIVERGENCES: dict[str, Divergence] = {"forward_kl": forward_kl}
"""By name: what is summed over the kept tokens, from log-probabilities of the student and of the teacher."""


class LogitsDistillation(Term):
    """Divergence between the teacher's and the student's next-token distributions, in nats.

        tau^2 sum_t KL( softmax(z_teacher,t / tau) || softmax(z_student,t / tau) )

    over the tokens t whose label is not -100, divided by their number. Hinton et al. 2015 (arXiv:1503.02531), section
    2.1, which minimises the cross entropy: the teacher's entropy, which is constant, is subtracted here so that equal
    logits give zero. The factor tau^2 keeps the size of the gradient when tau changes. Weights of samples belong to
    the ground truth and are not used.

    Args:
        temperature: tau.
        divergence: Which one; ``forward_kl``.
        shift_labels: Position t predicts label t + 1, as in :class:`amad.losses.task.TaskLoss`.

    Raises:
        RecipeError: if the temperature is not above zero or the divergence unknown.
    """

    needs = frozenset({"logits"})
    needs_teacher = True

    def __init__(
        self,
        temperature: float = 1.0,
        divergence: Literal["forward_kl"] = "forward_kl",
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
