"""Divergence of teacher maps from mixtures of student maps of which a few rows are there at a time."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl.by_row import log_in_place, raise_to_floor, row_aligned_kl
from amad.ops.rows import Gradients, Pair, detach_pair, first_order
from amad.ops.sweep import Sweep, Tile, gradient_sweep

__all__ = ["aligned_kl", "row_aligned_kl"]


def aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """See :func:`amad.ops.aligned_kl.aligned_kl`."""
    pair, tensors = detach_pair(student, teacher)
    return _AlignedKL.apply(pair, alignment, *tensors)  # type: ignore[no-untyped-call, no-any-return]


class Divergence(NamedTuple):
    """The value of :func:`aligned_kl`, and its gradient to the alignment for a weight of one per teacher head."""

    value: Float[Tensor, "batch teacher"]
    to_alignment: Float[Tensor, "batch teacher student"] | None


def kl_sweep(sweep: Sweep, alignment: Tensor, to_alignment: bool) -> Divergence:
    """The mean over rows of KL( t_i || sum_j a_ij s_j ), and -sum_k t_ik s_jk / (A S)_ik if it is asked for."""
    value = sweep.zeros(sweep.teacher.n_heads).double()
    towards = torch.zeros_like(alignment, dtype=torch.float64) if to_alignment else None
    scratch = sweep.room("scratch", sweep.teacher.n_heads)
    for tile in sweep.tiles():
        ratio, floored = _mixture_ratio(tile, alignment[tile.samples].to(sweep.dtype), scratch)
        if towards is not None:
            live = ratio if floored is None else ratio.masked_fill(floored, 0.0)
            towards[tile.samples] -= torch.bmm(tile.student.flatten(2), live.transpose(1, 2)).transpose(1, 2)
        value[tile.samples] += log_in_place(ratio).view_as(tile.teacher).mul_(tile.teacher).sum(-1).sum(-1)
    n_rows = sweep.n_rows[:, None]
    mean = value.to(sweep.dtype) / n_rows
    return Divergence(mean, None if towards is None else towards.to(sweep.dtype) / n_rows[..., None])


class KLGradient:
    """What the divergence adds to the gradient of the student's maps: dS = -(g A)^T (T / A S) / rows.

    Args:
        sweep: Over the maps.
        alignment: A.
        weights: g, the gradient of each teacher head's divergence.
    """

    def __init__(
        self,
        sweep: Sweep,
        alignment: Float[Tensor, "batch teacher student"],
        weights: Float[Tensor, "batch teacher"],
    ) -> None:
        self._alignment = alignment.to(sweep.dtype)
        weights = weights / sweep.n_rows[:, None]
        self._weighted = (self._alignment * -weights[..., None]).transpose(1, 2).contiguous()

    def add(
        self, tile: Tile, scratch: Tensor, gradient: Float[Tensor, "sample student row key"], first: bool
    ) -> None:
        """See :class:`amad.ops.sweep.Contribution`."""
        ratio, floored = _mixture_ratio(tile, self._alignment[tile.samples], scratch)
        if floored is not None:
            ratio.masked_fill_(floored, 0.0)
        out = gradient.flatten(2)
        out.baddbmm_(self._weighted[tile.samples], ratio, beta=0 if first else 1)


def _mixture_ratio(
    tile: Tile, alignment: Tensor, scratch: Tensor
) -> tuple[Tensor, Bool[Tensor, "..."] | None]:
    """T / (A S), (sample, teacher, row * key), in the scratch memory, and where the mixture was below the floor.

    None where it never was. Below the floor the logarithm is constant, so nothing flows.
    """
    teacher = tile.teacher.flatten(2)
    ratio = scratch[: teacher.numel()].view(teacher.shape)
    torch.bmm(alignment, tile.student.flatten(2), out=ratio)
    floored = raise_to_floor(ratio)
    return torch.div(teacher, ratio, out=ratio), floored


class _AlignedKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pair: Pair, alignment: Tensor, *tensors: Tensor) -> Tensor:
        with Sweep(pair.student, pair.teacher, is_whole=True) as sweep:
            found = kl_sweep(sweep, alignment, ctx.needs_input_grad[1])
        pair.save(ctx, alignment, found.to_alignment)
        return found.value

    @staticmethod
    @first_order
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        alignment, to_alignment, *_ = ctx.saved_tensors
        towards = None if to_alignment is None else (to_alignment * weights[..., None]).to(alignment.dtype)
        if not ctx.pair.names:
            return None, towards
        with Sweep(ctx.pair.student, ctx.pair.teacher, is_whole=True) as sweep:
            gradients = Gradients(ctx.pair, sweep.dtype)
            gradient_sweep(sweep, [KLGradient(sweep, alignment, weights)], gradients)
        return None, towards, *gradients.results()
