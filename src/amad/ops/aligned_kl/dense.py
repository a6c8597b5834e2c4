"""The divergence on dense maps in few passes over them: what a CPU runs for maps that fit into memory."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from amad.ops.aligned_kl.reference import MASS_FLOOR


class _MixtureKL(torch.autograd.Function):
    """:func:`amad.ops.aligned_kl.reference.mixture_kl`, with R = T / (A S) kept for the gradients.

    dL/dS = -A^T (g R) and dL/dA = -(g R) S^T, where g is the gradient of each teacher head's divergence.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, alignment: Tensor) -> Tensor:
        ratio = torch.bmm(alignment, student)
        floored = ratio < MASS_FLOOR if bool(ratio.amin() < MASS_FLOOR) else None
        torch.div(teacher, ratio.clamp_(min=MASS_FLOOR), out=ratio)
        logarithm = ratio.clamp(min=MASS_FLOOR).log_()
        value = logarithm.mul_(teacher).sum(-1)
        # Below the floor the logarithm is constant, so nothing flows.
        ctx.save_for_backward(
            student, alignment, ratio if floored is None else ratio.masked_fill_(floored, 0.0)
        )
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        student, alignment, ratio = ctx.saved_tensors
        to_student = to_alignment = None
        if ctx.needs_input_grad[0]:
            to_student = torch.bmm((alignment * -gradient[..., None]).transpose(1, 2), ratio)
        if ctx.needs_input_grad[2]:
            to_alignment = torch.bmm(ratio, student.transpose(1, 2)) * -gradient[..., None]
        return to_student, None, to_alignment


def mixture_kl(
    student: Float[Tensor, "sample student key"],
    teacher: Float[Tensor, "sample teacher key"],
    alignment: Float[Tensor, "sample teacher student"],
) -> Float[Tensor, "sample teacher"]:
    """As :func:`amad.ops.aligned_kl.reference.mixture_kl`; no gradient to the teacher."""
    return _MixtureKL.apply(student, teacher, alignment)  # type: ignore[no-untyped-call, no-any-return]
