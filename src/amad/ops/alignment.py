"""Who teaches whom: cosines of attention maps and the weights that follow from them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from amad.errors import RecipeError
from amad.ops.attention_gram.reference import AttentionGram


class Cosines(NamedTuple):
    """Cosines of flattened maps; zero where either map is zero.

    Attributes:
        cross: Of teacher head i and student head j.
        student: Of student heads j and l.
        teacher: Of a teacher head with itself: one, or zero where its map is.
    """

    cross: Float[Tensor, "*sample teacher student"]
    student: Float[Tensor, "*sample student student"]
    teacher: Float[Tensor, "*sample teacher"]


def cosines(gram: AttentionGram) -> Cosines:
    """Inner products divided by the norms; a map of norm zero has cosine zero with all, and no gradient."""
    student = _inverse_norm(gram.student.diagonal(dim1=-2, dim2=-1))
    teacher = _inverse_norm(gram.teacher_norm)
    return Cosines(
        cross=gram.cross * teacher[..., :, None] * student[..., None, :],
        student=gram.student * student[..., :, None] * student[..., None, :],
        teacher=(gram.teacher_norm > 0).to(gram.teacher_norm.dtype),
    )


def alignment_weights(
    gram: AttentionGram, temperature: float = 1.0
) -> Float[Tensor, "*sample teacher student"]:
    """How much each student head learns from each teacher head; over the student's heads they sum to one.

        a_ij = softmax_j( <t_i, s_j> / (|t_i| |s_j|) / temperature )

    Zhao et al. 2024, equations 1-3, where the temperature is 1. Uniform, with no gradient, where a map is zero.

    Raises:
        RecipeError: if the temperature is not above zero.
    """
    check_temperature(temperature)
    return (cosines(gram).cross / temperature).softmax(-1)


def check_temperature(temperature: float) -> None:
    """Refuse what cannot divide.

    Raises:
        RecipeError: if the temperature is not a number above zero.
    """
    if not 0 < temperature < float("inf"):
        raise RecipeError(
            f"temperature = {temperature}: it divides, so it must be above 0 and finite. The paper's is 1."
        )


def _inverse_norm(squared: Tensor) -> Tensor:
    # The inner where keeps the root's infinite slope at zero out of the gradient.
    alive = squared > 0
    return torch.where(alive, torch.where(alive, squared, 1.0).rsqrt(), 0.0)
