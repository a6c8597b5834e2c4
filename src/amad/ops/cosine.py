"""From inner products to cosines, and from cosines to who teaches whom."""

import torch
from jaxtyping import Float
from torch import Tensor


def cosines(
    cross: Float[Tensor, "*rest teacher student"],
    student_norm: Float[Tensor, "*rest student"],
    teacher_norm: Float[Tensor, "*rest teacher"],
) -> Float[Tensor, "*rest teacher student"]:
    """<t_i, s_j> / (|t_i| |s_j|) from inner products and squared norms; zero, with zero gradient, at a zero norm."""
    product = teacher_norm[..., :, None] * student_norm[..., None, :]
    real = product > 0
    return torch.where(real, cross * torch.where(real, product, torch.ones_like(product)).rsqrt(), 0.0)


def alignment_weights(
    cosine: Float[Tensor, "*rest teacher student"], temperature: float = 1.0
) -> Float[Tensor, "*rest teacher student"]:
    """a_ij = softmax over student heads j of (cosine_ij / temperature): equations 1 to 3. Rows sum to one."""
    return (cosine / temperature).softmax(-1)
