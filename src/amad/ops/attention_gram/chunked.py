"""Inner products of attention maps of which a few rows are there at a time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.attention_gram.reference import AttentionGram
from amad.ops.rows import Gradients, Pair, detach_pair, first_order
from amad.ops.sweep import LONG_ROW, Sweep, Tile, gradient_sweep


def attention_gram(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_gram`."""
    pair, tensors = detach_pair(student, teacher)
    return AttentionGram(*_Gram.apply(pair, *tensors))  # type: ignore[no-untyped-call]


def attention_row_grams(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_row_grams`."""
    with Sweep(student.detach(), teacher.detach(), is_whole=False) as sweep:
        cross = sweep.zeros(student.n_queries, teacher.n_heads, student.n_heads)
        own = sweep.zeros(student.n_queries, student.n_heads, student.n_heads)
        norms = sweep.zeros(student.n_queries, teacher.n_heads)
        for tile in sweep.tiles():
            of_student, of_teacher = tile.student.transpose(1, 2), tile.teacher.transpose(1, 2)
            cross[tile.samples, tile.rows] = torch.matmul(of_teacher, of_student.mT)
            own[tile.samples, tile.rows] = torch.matmul(of_student, of_student.mT)
            norms[tile.samples, tile.rows] = torch.linalg.vector_norm(of_teacher, dim=-1).square_()
    return AttentionGram(cross.flatten(0, 1), own.flatten(0, 1), norms.flatten(0, 1))


def gram_sweep(sweep: Sweep) -> AttentionGram:
    """The inner products, (batch, ...), in the dtype of the computation.

    Products are summed over short pieces in that dtype, and these in float64: one float32 sum over a whole map of
    N^2 numbers would be off by 1e-3 at N = 2,048.
    """
    n_teachers, n_students = sweep.teacher.n_heads, sweep.student.n_heads
    cross = sweep.zeros(n_students, n_teachers).double()
    own = sweep.zeros(n_students, n_students).double()
    norms = sweep.zeros(n_teachers).double()
    for tile in sweep.tiles():
        cross[tile.samples] += _products(tile.student, tile.teacher)
        own[tile.samples] += _products(tile.student, tile.student)
        norms[tile.samples] += torch.linalg.vector_norm(tile.teacher, dim=-1).square_().sum(-1)
    return AttentionGram(
        cross.to(sweep.dtype).transpose(1, 2).contiguous(), own.to(sweep.dtype), norms.to(sweep.dtype)
    )


def _products(
    student: Float[Tensor, "sample student row key"], maps: Float[Tensor, "sample head row key"]
) -> Float[Tensor, "sample student head"]:
    """Inner products of maps; those of long rows are summed over rows in float64, short rows are one sum of 2^14."""
    # The few student heads on the left: the other way round takes half as long again.
    if maps.shape[3] < LONG_ROW:
        return torch.bmm(student.flatten(2), maps.flatten(2).mT)
    by_row = torch.bmm(student[0].transpose(0, 1), maps[0].permute(1, 2, 0))
    return by_row.sum(0, keepdim=True, dtype=torch.float64)


class GramGradient:
    """What the inner products add to the gradient of the student's maps: dS = dCross^T T + (dOwn + dOwn^T) S.

    Args:
        cross: Gradient to the products with the teacher's maps; None: there is none.
        student: Gradient to those of the student's maps with each other; None: there is none.
    """

    def __init__(self, cross: Tensor | None, student: Tensor | None) -> None:
        self._cross = None if cross is None else cross.transpose(1, 2).contiguous()
        self._own = None if student is None else student + student.transpose(1, 2)

    def add(
        self, tile: Tile, scratch: Tensor, gradient: Float[Tensor, "sample student row key"], first: bool
    ) -> None:
        """See :class:`amad.ops.sweep.Contribution`."""
        out = gradient.flatten(2)
        if first and self._cross is None and self._own is None:
            out.zero_()
        for weights, maps in ((self._cross, tile.teacher), (self._own, tile.student)):
            if weights is not None:
                out.baddbmm_(weights[tile.samples].to(out.dtype), maps.flatten(2), beta=0 if first else 1)
                first = False


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
            gradient_sweep(sweep, [GramGradient(cross, student)], gradients)
        return None, *gradients.results()
