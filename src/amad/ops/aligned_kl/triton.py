"""Divergences of attention maps from mixtures on an NVIDIA GPU, without the maps; see :mod:`amad.ops.bands`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl.reference import MASS_FLOOR
from amad.ops.alignment import alignment_weights, check_temperature
from amad.ops.attention_gram.reference import AttentionGram
from amad.ops.bands.pair import Pair, on_device, prepared
from amad.ops.bands.products import Coefficients, divergence_of_band, gram_of_band, student_gradients
from amad.ops.bands.workspace import Band, Workspace

MASS_FLOOR_16_BITS = 1e-12
"""Takes the place of ``MASS_FLOOR`` where both models compute in 16 bits: maps then hold no less than 2e-12."""

_SLACK = 4.0
"""|dL/dX| is below three times the sum of what the teacher's heads weigh; see :func:`_bound`."""


def aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """As :func:`amad.ops.aligned_kl.aligned_kl`, for records that :func:`amad.ops.bands.unsupported` passes.

    In float32. Where both models compute in 16 bits, maps are rounded to float16 times 2^15, and a mixture with less
    than 1e-12 counts as that.

    Raises:
        ShapeError: if the batches differ.
    """
    student, teacher = prepared(student, teacher)
    return _AlignedKL.apply(  # type: ignore[no-untyped-call, no-any-return]
        student.query,
        student.key,
        student.position_bias,
        student.mask,
        student.sinks,
        alignment.float(),
        student,
        teacher,
    )


def row_aligned_kl(
    student: AttentionRecord,
    teacher: AttentionRecord,
    temperature: float = 1.0,
    detach_alignment: bool = False,
) -> Float[Tensor, "batch teacher"]:
    """As :func:`amad.ops.aligned_kl.row_aligned_kl`, with the limits of :func:`aligned_kl`.

    Raises:
        ShapeError: if the batches differ.
        RecipeError: if the temperature is not above zero.
    """
    check_temperature(temperature)
    student, teacher = prepared(student, teacher)
    return _RowAlignedKL.apply(  # type: ignore[no-untyped-call, no-any-return]
        student.query,
        student.key,
        student.position_bias,
        student.mask,
        student.sinks,
        student,
        teacher,
        temperature,
        detach_alignment,
    )


class _AlignedKL(torch.autograd.Function):
    """Forward: one sweep for the values and sum (t / m) s, of which the alignment's gradient is a multiple.

    Backward: one more, with dL/dS = - (g A)^T (T / m), where g weighs the teacher's heads.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        position_bias: Tensor | None,
        mask: Tensor | None,
        sinks: Tensor | None,
        alignment: Tensor,
        student: AttentionRecord,
        teacher: AttentionRecord,
    ) -> Tensor:
        with on_device(query):
            pair = Pair.of(student, teacher, whole=True)
            total = alignment.new_zeros(alignment.shape[:2])
            slopes = torch.zeros_like(alignment) if ctx.needs_input_grad[5] else None
            workspace = pair.workspace()
            for band in pair.filled(workspace):
                values, parts = divergence_of_band(
                    pair, workspace, band, alignment[band.samples], _floor(pair), slopes is not None
                )
                total[band.samples] += values
                if slopes is not None:
                    slopes[band.samples] += parts
        n_rows = pair.keep.sum(1, keepdim=True).clamp(min=1)
        ctx.save_for_backward(query, key, position_bias, mask, sinks, alignment, slopes, n_rows)
        ctx.pair = pair
        return total / n_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "batch teacher"]) -> tuple[Tensor | None, ...]:
        *_, sinks, alignment, slopes, n_rows = ctx.saved_tensors
        per_row = gradient / n_rows
        pull = per_row[..., None] * alignment
        to_student: tuple[Tensor | None, ...] = (None,) * 5
        if any(ctx.needs_input_grad[:5]):

            def coefficients(band: Band, workspace: Workspace) -> Coefficients:
                samples = band.samples
                return Coefficients(
                    _bound(per_row[samples], alignment.shape[2]),
                    alignment=alignment[samples],
                    pull=pull[samples],
                    floor=_floor(ctx.pair),
                )

            with on_device(gradient):
                to_student = student_gradients(ctx.pair, ctx.needs_input_grad[:5], coefficients)
        to_alignment = None if slopes is None else -per_row[..., None] * slopes
        return *to_student[:4], _zeros(sinks), to_alignment, None, None


class _RowAlignedKL(torch.autograd.Function):
    """As :class:`_AlignedKL`, where inner products, alignment and its gradient are those of a band's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        position_bias: Tensor | None,
        mask: Tensor | None,
        sinks: Tensor | None,
        student: AttentionRecord,
        teacher: AttentionRecord,
        temperature: float,
        detach_alignment: bool,
    ) -> Tensor:
        with on_device(query):
            pair = Pair.of(student, teacher, whole=True)
            total = pair.student_lse.new_zeros(student.n_batch, teacher.n_heads)
            workspace = pair.workspace()
            for band in pair.filled(workspace):
                weights = alignment_weights(_row_grams(pair, workspace, band), temperature)
                values, _ = divergence_of_band(pair, workspace, band, weights, _floor(pair), False)
                total[band.samples] += values.sum(1)
        n_rows = pair.keep.sum(1, keepdim=True).clamp(min=1)
        ctx.save_for_backward(query, key, position_bias, mask, sinks, n_rows)
        ctx.pair, ctx.temperature, ctx.detach_alignment = pair, temperature, detach_alignment
        return total / n_rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "batch teacher"]) -> tuple[Tensor | None, ...]:
        *_, sinks, n_rows = ctx.saved_tensors
        per_row = gradient / n_rows

        def coefficients(band: Band, workspace: Workspace) -> Coefficients:
            return _row_coefficients(
                ctx.pair, workspace, band, per_row[band.samples], ctx.temperature, ctx.detach_alignment
            )

        with on_device(gradient):
            to_student = student_gradients(ctx.pair, ctx.needs_input_grad[:5], coefficients)
        return *to_student[:4], _zeros(sinks), None, None, None, None


def _row_coefficients(
    pair: Pair,
    workspace: Workspace,
    band: Band,
    weights: Float[Tensor, "sample teacher"],
    temperature: float,
    detach_alignment: bool,
) -> Coefficients:
    """dL/dS of the rows of a band, where each teacher head's divergence has the given weight."""
    floor = _floor(pair)
    bound = _bound(weights, pair.student.n_heads)
    gram = _row_grams(pair, workspace, band)
    if detach_alignment:
        alignment = alignment_weights(gram, temperature)
        pull = weights[:, None, :, None] * alignment
        return Coefficients(bound, alignment=alignment, pull=pull, per_row=True, floor=floor)
    with torch.enable_grad():
        cross, own = gram.cross.requires_grad_(), gram.student.requires_grad_()
        alignment = alignment_weights(AttentionGram(cross, own, gram.teacher_norm), temperature)
        _, slopes = divergence_of_band(pair, workspace, band, alignment.detach(), floor, True)
        to_cross, to_own = torch.autograd.grad(alignment, (cross, own), -weights[:, None, :, None] * slopes)
    alignment = alignment.detach()
    squared = gram.student.detach().diagonal(dim1=-2, dim2=-1)
    to_squared = 2 * to_own.diagonal(dim1=-2, dim2=-1)
    # No number of a row is above the row's norm.
    reach = (to_cross.abs() * gram.teacher_norm.sqrt()[..., None]).sum(-2) * squared.sqrt()
    reach = (reach + to_squared.abs() * squared).amax(1)
    return Coefficients(
        bound + 2 * reach,
        alignment=alignment,
        pull=weights[:, None, :, None] * alignment,
        cross=to_cross,
        own=to_squared,
        per_row=True,
        floor=floor,
    )


def _row_grams(pair: Pair, workspace: Workspace, band: Band) -> AttentionGram:
    """Inner products (sample, row, ...); those of two different student heads are not made and zero."""
    cross, squared, norm = gram_of_band(pair, workspace, band, per_row=True)
    return AttentionGram(cross, torch.diag_embed(squared), norm)


def _bound(weights: Float[Tensor, "sample teacher"], n_students: int) -> Float[Tensor, "sample student"]:
    """Above |dL/dX|: a_ij s_j |t_i / m_i - 1| is at most one, and its sum over a row at most two."""
    return (_SLACK * weights.abs().sum(1, keepdim=True)).expand(-1, n_students)


def _floor(pair: Pair) -> float:
    return MASS_FLOOR_16_BITS if pair.is_half else MASS_FLOOR


def _zeros(sinks: Tensor | None) -> Tensor | None:
    """Rows that are divided by their sum do not depend on what a sink takes."""
    return None if sinks is None else torch.zeros_like(sinks)
