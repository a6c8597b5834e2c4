"""Divergence with an alignment of its own for each query row: value and gradient of a row from that row alone."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl.reference import MASS_FLOOR
from amad.ops.rows import Gradients, Pair, detach_pair, first_order
from amad.ops.sweep import Sweep


def row_aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, temperature: float, detach_alignment: bool
) -> Float[Tensor, "batch teacher"]:
    """See :func:`amad.ops.aligned_kl.row_aligned_kl`."""
    pair, tensors = detach_pair(student, teacher)
    return _RowAlignedKL.apply(pair, temperature, detach_alignment, *tensors)  # type: ignore[no-untyped-call, no-any-return]


class _Alignment(NamedTuple):
    """The alignment of the rows of a tile.

    Attributes:
        weights: a_ij of each row.
        cosine: Of the rows of teacher head i and student head j.
        over_teacher: 1 / |t_i|, zero where the row is.
        over_student: 1 / |s_j|, likewise.
    """

    weights: Float[Tensor, "row teacher student"]
    cosine: Float[Tensor, "row teacher student"]
    over_teacher: Float[Tensor, "row teacher 1"]
    over_student: Float[Tensor, "row 1 student"]


def row_sweep(
    sweep: Sweep,
    temperature: float,
    detach_alignment: bool,
    weights: Float[Tensor, "batch teacher"],
    gradients: Gradients,
) -> Float[Tensor, "batch teacher"]:
    """The value, and in the same sweep the gradients of the sum over teacher heads of weight times value."""
    n_teachers, n_students = sweep.teacher.n_heads, sweep.student.n_heads
    value = sweep.zeros(n_teachers).double()
    weights = weights / sweep.n_rows[:, None]
    mixed = sweep.room("mixed", n_teachers)
    by_row, by_head = sweep.room("by row", n_students), sweep.room("by head", n_students)
    for tile in sweep.tiles():
        # The rows of all samples of the tile, one sample after the other.
        student, teacher = (maps.transpose(1, 2).flatten(0, 1) for maps in (tile.student, tile.teacher))
        found = _align(student, teacher, temperature)
        ratio = mixed[: tile.teacher.numel()].view(teacher.shape)
        torch.bmm(found.weights, student, out=ratio)
        floored = raise_to_floor(ratio)
        torch.div(teacher, ratio, out=ratio)
        if gradients.sums:
            live = ratio if floored is None else ratio.masked_fill(floored, 0.0)
            weight = weights[tile.samples].repeat_interleave(tile.student.shape[2], 0)[..., None]
            # To the student's rows: through the mixture, and through the alignment's inner products.
            through = by_row[: tile.student.numel()].view(student.shape)
            torch.bmm((found.weights * -weight).transpose(1, 2), live, out=through)
            if not detach_alignment:
                to_alignment = torch.bmm(live, student.transpose(1, 2)) * -weight
                cross, own = _to_products(found, to_alignment, temperature)
                through.baddbmm_(cross, teacher).addcmul_(own[..., None], student)
            gradient = by_head[: tile.student.numel()].view(tile.student.shape)
            gradient.copy_(through.view(gradient.transpose(1, 2).shape).transpose(1, 2))
            sweep.back(tile, gradient, gradients)
        by_row_and_head = log_in_place(ratio).mul_(teacher).sum(-1)
        value[tile.samples] += by_row_and_head.view(-1, tile.student.shape[2], n_teachers).sum(1)
    return value.to(sweep.dtype) / sweep.n_rows[:, None]


def _align(student: Tensor, teacher: Tensor, temperature: float) -> _Alignment:
    over_teacher = _inverse_norm(teacher)[:, :, None]
    over_student = _inverse_norm(student)[:, None, :]
    cosine = torch.bmm(student, teacher.transpose(1, 2)).transpose(1, 2) * over_teacher * over_student
    return _Alignment((cosine / temperature).softmax(-1), cosine, over_teacher, over_student)


def _to_products(
    found: _Alignment, to_alignment: Tensor, temperature: float
) -> tuple[Float[Tensor, "row student teacher"], Float[Tensor, "row student"]]:
    """Gradient to the student's rows as weights of the teacher's rows, and of the student's own.

    With z = cosine / temperature: dz = a (da - <a, da>); d<t_i, s_j> = dz_ij / (temperature |t_i| |s_j|); and
    d|s_j|^2 = -sum_i dz_ij cosine_ij / (2 temperature |s_j|^2).
    """
    mean = (found.weights * to_alignment).sum(-1, keepdim=True)
    to_cosine = found.weights * (to_alignment - mean) / temperature
    cross = to_cosine * found.over_teacher * found.over_student
    own = -(to_cosine * found.cosine).sum(1) * found.over_student[:, 0].square()
    return cross.transpose(1, 2), own


def raise_to_floor(mixture: Tensor) -> Bool[Tensor, "..."] | None:
    """Raise the mixture to the floor, in place; returns where that changed it, or None where it did not."""
    if not mixture.is_cuda and not bool(mixture.amin() < MASS_FLOOR):
        return None
    floored = mixture < MASS_FLOOR
    mixture.clamp_(min=MASS_FLOOR)
    return floored


def log_in_place(ratio: Tensor) -> Tensor:
    """The logarithm; finite where the teacher's map is zero."""
    return ratio.clamp_(min=MASS_FLOOR).log_()


def _inverse_norm(rows: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(rows, dim=-1)
    return torch.where(norm > 0, 1.0 / norm, 0.0)


class _RowAlignedKL(torch.autograd.Function):
    """Gradients are made in the forward pass, for equal weights.

    A backward pass with other weights, or a second one, sweeps again.
    """

    @staticmethod
    def forward(ctx: Any, pair: Pair, temperature: float, detach_alignment: bool, *tensors: Tensor) -> Tensor:
        with Sweep(pair.student, pair.teacher, is_whole=True) as sweep:
            gradients = Gradients(pair, sweep.dtype)
            ones = sweep.zeros(sweep.teacher.n_heads) + 1.0
            value = row_sweep(sweep, temperature, detach_alignment, ones, gradients)
        ctx.temperature, ctx.detach_alignment, ctx.gradients = temperature, detach_alignment, gradients
        pair.save(ctx)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.gradients = ctx.gradients, None
        if made is not None and bool((weights == weights[0, 0]).all()):
            return None, None, None, *made.results(weights[0, 0])
        with Sweep(ctx.pair.student, ctx.pair.teacher, is_whole=True) as sweep:
            gradients = Gradients(ctx.pair, sweep.dtype)
            row_sweep(sweep, ctx.temperature, ctx.detach_alignment, weights, gradients)
        return None, None, None, *gradients.results()
