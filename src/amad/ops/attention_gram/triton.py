"""Inner products of attention maps on an NVIDIA GPU, without the maps; see :mod:`amad.ops.bands`."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from amad.capture.record import AttentionRecord
from amad.ops.attention_gram.reference import AttentionGram
from amad.ops.bands.pair import Pair, on_device, prepared
from amad.ops.bands.products import Coefficients, gram_of_band, student_gradients
from amad.ops.bands.workspace import Band, Workspace


def attention_gram(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """As :func:`amad.ops.attention_gram.attention_gram`, for records that :func:`amad.ops.bands.unsupported` passes.

    In float32. Where both models compute in 16 bits, maps are rounded to float16 times 2^15, the same ones for all
    three products. Gradients flow to the student's sinks, too, and are the same from run to run.

    Raises:
        ShapeError: if the batches differ.
    """
    student, teacher = prepared(student, teacher)
    found = _Gram.apply(  # type: ignore[no-untyped-call]
        student.query, student.key, student.position_bias, student.mask, student.sinks, student, teacher
    )
    return AttentionGram(*found)


class _Gram(torch.autograd.Function):
    """Forward: one sweep over the bands. Backward: one more, with dL/dS = dC^T T + (dP + dP^T) S."""

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
    ) -> tuple[Tensor, Tensor, Tensor]:
        with on_device(query):
            pair = Pair.of(student, teacher, whole=False)
            new = pair.student_lse.new_zeros
            n_batch, n_students, n_teachers = student.n_batch, student.n_heads, teacher.n_heads
            totals = (
                new(n_batch, n_teachers, n_students),
                new(n_batch, n_students, n_students),
                new(n_batch, n_teachers),
            )
            workspace = pair.workspace()
            for band in pair.filled(workspace):
                for total, part in zip(totals, gram_of_band(pair, workspace, band), strict=True):
                    total[band.samples] += part
        # For their versions: the pair holds the same memory.
        ctx.save_for_backward(query, key, position_bias, mask, sinks)
        ctx.pair = pair
        ctx.mark_non_differentiable(totals[2])
        return totals

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        to_cross: Float[Tensor, "batch teacher student"],
        to_own: Float[Tensor, "batch student student"],
        _: Tensor,
    ) -> tuple[Tensor | None, ...]:
        _ = ctx.saved_tensors
        own = to_own + to_own.transpose(1, 2)
        # Maps are at most one.
        bound = to_cross.abs().sum(1) + own.abs().sum(1)

        def coefficients(band: Band, workspace: Workspace) -> Coefficients:
            return Coefficients(bound[band.samples], cross=to_cross[band.samples], own=own[band.samples])

        with on_device(to_cross):
            return *student_gradients(ctx.pair, ctx.needs_input_grad[:5], coefficients), None, None
