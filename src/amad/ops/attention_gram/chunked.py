"""Inner products of attention maps of which a few rows are there at a time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.attention_gram.reference import AttentionGram
from amad.ops.rows import Gradients, Pair, detach_pair, first_order
from amad.ops.sweep import Sweep, Tile, gradient_sweep

LONG_ROW = 256
"""Products are summed row by row from this length on; shorter rows of a tile are one sum of at most 2^14 numbers."""


def attention_gram(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_gram`."""
    pair, tensors = detach_pair(student, teacher)
    return AttentionGram(*_Gram.apply(pair, *tensors))  # type: ignore[no-untyped-call]


def attention_row_grams(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_row_grams`."""
    n_teachers, n_students = teacher.n_heads, student.n_heads
    with Sweep(student.detach(), teacher.detach(), is_whole=False) as sweep:
        products = sweep.zeros(student.n_queries, n_students, n_teachers + n_students)
        norms = sweep.zeros(student.n_queries, n_teachers)
        for tile in sweep.tiles():
            rows = tile.student.transpose(0, 1), tile.maps.permute(1, 2, 0)
            products[tile.sample, tile.rows] = torch.bmm(*rows)
            norms[tile.sample, tile.rows] = torch.linalg.vector_norm(tile.teacher, dim=-1).square_().T
    products = products.flatten(0, 1)
    return AttentionGram(
        products[..., :n_teachers].transpose(1, 2), products[..., n_teachers:], norms.flatten(0, 1)
    )


def gram_sweep(sweep: Sweep) -> AttentionGram:
    """The inner products, (batch, ...), in the dtype of the computation.

    Products are summed over short pieces in that dtype, and these in float64: one float32 sum over a whole map of
    N^2 numbers would be off by 1e-3 at N = 2,048.
    """
    n_teachers, n_students = sweep.teacher.n_heads, sweep.student.n_heads
    products = sweep.zeros(n_students, n_teachers + n_students).double()
    norms = sweep.zeros(n_teachers).double()
    for tile in sweep.tiles():
        products[tile.sample] += _products(tile)
        norms[tile.sample] += torch.linalg.vector_norm(tile.teacher, dim=-1).square_().sum(-1)
    products, norms = products.to(sweep.dtype), norms.to(sweep.dtype)
    cross, student = products[..., :n_teachers].transpose(1, 2), products[..., n_teachers:]
    return AttentionGram(cross.contiguous(), student.contiguous(), norms)


def _products(tile: Tile) -> Float[Tensor, "student head"]:
    # The few student heads on the left: the other way round takes half as long again.
    if tile.maps.shape[2] < LONG_ROW:
        return torch.mm(tile.student.flatten(1), tile.maps.flatten(1).T)
    return torch.bmm(tile.student.transpose(0, 1), tile.maps.permute(1, 2, 0)).sum(0, dtype=torch.float64)


class GramGradient:
    """What the inner products add to the gradient of the student's maps: dS = dCross^T T + (dOwn + dOwn^T) S.

    Args:
        sweep: Over the maps.
        cross: Gradient to the products with the teacher's maps; None: there is none.
        student: Gradient to those of the student's maps with each other; None: there is none.
    """

    def __init__(self, sweep: Sweep, cross: Tensor | None, student: Tensor | None) -> None:
        n_teachers, n_students = sweep.teacher.n_heads, sweep.student.n_heads
        cross = sweep.zeros(n_teachers, n_students) if cross is None else cross
        student = sweep.zeros(n_students, n_students) if student is None else student
        self._weights = torch.cat([cross.transpose(1, 2), student + student.transpose(1, 2)], 2).contiguous()

    def add(
        self, tile: Tile, scratch: Tensor, gradient: Float[Tensor, "student row key"], first: bool
    ) -> None:
        """See :class:`amad.ops.sweep.Contribution`."""
        weights, out = self._weights[tile.sample].to(gradient.dtype), gradient.flatten(1)
        if first:
            torch.mm(weights, tile.maps.flatten(1), out=out)
        else:
            out.addmm_(weights, tile.maps.flatten(1))


class _Gram(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pair: Pair, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with Sweep(pair.student, pair.teacher, is_whole=False) as sweep:
            gram = gram_sweep(sweep)
        pair.save(ctx)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(gram.teacher_norm)
        return gram.cross, gram.student, gram.teacher_norm

    @staticmethod
    @first_order
    def backward(ctx: Any, cross: Tensor | None, student: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        with Sweep(ctx.pair.student, ctx.pair.teacher, is_whole=False) as sweep:
            gradients = Gradients(ctx.pair, sweep.dtype)
            gradient_sweep(sweep, [GramGradient(sweep, cross, student)], gradients)
        return None, *gradients.results()
