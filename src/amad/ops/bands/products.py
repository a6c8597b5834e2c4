"""What follows from the maps of a band: inner products, divergences, and the gradients of the student's record."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from amad.ops.bands import head_kernels, kernels
from amad.ops.bands.configs import CHUNK, heads_config, padded
from amad.ops.bands.launch import add_projections
from amad.ops.bands.pair import Pair
from amad.ops.bands.workspace import Band, Workspace

_MAP_SCALE: float = kernels.MAP_SCALE.value
_LOG2_E = 1.4426950408889634


class Coefficients(NamedTuple):
    """What dL/dS of a band follows from; see :func:`amad.ops.bands.head_kernels.logit_gradient_kernel`.

    Matrices are (sample, ...) or, where ``per_row``, (sample, row, ...), in which each row has its own.

    Attributes:
        bound: Above |dL/dX| for every score X of a head; gradients are stored divided by it.
        alignment: Weights of the mixture, (..., teacher, student).
        pull: (..., teacher, student).
        cross: (..., teacher, student).
        own: (..., student, student), symmetric; the diagonal (..., student) where ``per_row``.
        per_row: Whether each row has its own.
        floor: Least mass of a mixture.
    """

    bound: Float[Tensor, "sample student"]
    alignment: Tensor | None = None
    pull: Tensor | None = None
    cross: Tensor | None = None
    own: Tensor | None = None
    per_row: bool = False
    floor: float = 0.0


class StudentGradients(NamedTuple):
    """Gradients of a student's record; None where not wanted."""

    query: Tensor | None
    key: Tensor | None
    position_bias: Tensor | None
    mask: Tensor | None
    sinks: Tensor | None


def gram_of_band(
    pair: Pair, workspace: Workspace, band: Band, per_row: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of a band: cross, student (only squared norms where ``per_row``), squared norms of the teacher.

    They are (sample, ...), or (sample, row, ...) where ``per_row``.
    """
    n_teachers, n_students = pair.teacher.n_heads, pair.student.n_heads
    lines, chunks = _lines(band, per_row)
    new = pair.student_lse.new_empty
    shape = band.n_samples, *chunks
    cross = new(*shape, n_teachers, n_students)
    own = new(*shape, *((n_students,) if per_row else (n_students, n_students)))
    norm = new(*shape, n_teachers)
    head_kernels.gram_kernel[(math.prod(chunks), band.n_samples)](
        workspace.teacher,
        workspace.student,
        cross,
        own,
        norm,
        n_teachers,
        n_students,
        **lines,
        full=not per_row,
        **_options("gram", pair),
    )
    return _summed(cross, per_row), _summed(own, per_row), _summed(norm, per_row)


def divergence_of_band(
    pair: Pair,
    workspace: Workspace,
    band: Band,
    alignment: Float[Tensor, "sample *row teacher student"],
    floor: float,
    aligning: bool,
) -> tuple[Tensor, Tensor]:
    """Divergences (sample, *row, teacher) of a band, and sum_k (t / m) s, (..., student), where ``aligning``."""
    n_teachers, n_students = pair.teacher.n_heads, pair.student.n_heads
    per_row = alignment.ndim == 4
    lines, chunks = _lines(band, per_row)
    new = pair.student_lse.new_empty
    divergence = new(band.n_samples, *chunks, n_teachers)
    slopes = new(band.n_samples, *chunks, n_teachers, n_students) if aligning else divergence
    head_kernels.divergence_kernel[(math.prod(chunks), band.n_samples)](
        workspace.teacher,
        workspace.student,
        alignment.contiguous(),
        divergence,
        slopes,
        n_teachers,
        n_students,
        **lines,
        floor=floor,
        aligning=aligning,
        precision=_precision(pair),
        **_options("divergence", pair),
    )
    return _summed(divergence, per_row), _summed(slopes, per_row)


def student_gradients(
    pair: Pair,
    wanted: tuple[bool, ...],
    coefficients: Callable[[Band, Workspace], Coefficients],
) -> StudentGradients:
    """Gradients of query, key, position bias, float mask and sinks, as far as wanted, band by band.

    ``coefficients`` is called while the maps of the band are in the workspace.
    """
    student = pair.student
    new = pair.student_lse.new_zeros
    to_query = torch.empty_like(student.query, memory_format=torch.contiguous_format) if wanted[0] else None
    to_key = new(student.key.shape) if wanted[1] else None
    added = [
        new(tensor.shape) if tensor is not None and want else None
        for tensor, want in zip((student.position_bias, student.mask), wanted[2:4], strict=True)
    ]
    to_sinks = new(student.sinks.shape) if wanted[4] and student.sinks is not None else None
    workspace = pair.workspace(with_gradients=True)
    assert workspace.to_logits is not None
    group = student.n_heads // student.n_kv_heads
    for band in pair.filled(workspace):
        found = coefficients(band, workspace)
        bound = (
            found.bound.reshape(-1, student.n_kv_heads, group)
            .amax(-1)
            .clamp(min=torch.finfo(torch.float32).tiny)
        )
        per_head = bound.repeat_interleave(group, 1)
        row_slopes = _logit_gradient(pair, workspace, band, found, per_head)
        if to_sinks is not None and student.sinks is not None:
            taken = torch.exp2(
                student.sinks.float()[:, None] * _LOG2_E - pair.student_lse[band.samples, :, band.rows]
            )
            to_sinks -= (taken * row_slopes).sum((0, 2))
        for total in added:
            if total is not None:
                _add_to_added(total, workspace.to_logits, per_head, band)
        if workspace.cap_slopes is not None:
            n_numbers = band.n_samples * student.n_heads * band.size
            workspace.to_logits[:n_numbers].mul_(workspace.cap_slopes[:n_numbers])
        add_projections(student, workspace.to_logits, bound, band, to_query, to_key)
    return StudentGradients(
        query=to_query,
        key=None if to_key is None else to_key.to(student.key.dtype),
        position_bias=_like(added[0], student.position_bias),
        mask=_like(added[1], student.mask),
        sinks=_like(to_sinks, student.sinks),
    )


def _logit_gradient(
    pair: Pair, workspace: Workspace, band: Band, found: Coefficients, bound: Float[Tensor, "sample student"]
) -> Float[Tensor, "sample student row"]:
    """Write the gradients of the scores, divided by the bound; return D of every row, which is not."""
    over = bound[:, None, :] if found.per_row else bound
    lines, chunks = _lines(band, per_row=True)
    parts = bound.new_empty(band.n_samples, *chunks, pair.student.n_heads)

    def divided(matrix: Tensor | None) -> Tensor:
        return parts if matrix is None else (matrix / over[..., None, :]).contiguous()

    own = parts
    if found.own is not None:
        own = (found.own / (over if found.per_row else over[..., :, None])).contiguous()
    arguments = {
        "teacher": workspace.teacher,
        "student": workspace.student,
        "alignment": parts if found.alignment is None else found.alignment.contiguous(),
        "pull": divided(found.pull),
        "cross_slope": divided(found.cross),
        "own_slope": own,
        "to_logits": workspace.to_logits,
        "n_teachers": pair.teacher.n_heads,
        "n_students": pair.student.n_heads,
        "floor": found.floor,
        "mixed": found.pull is not None,
        "crossed": found.cross is not None,
        "full": not found.per_row,
        "per_row": found.per_row,
        "precision": _precision(pair),
        **lines,
        **_options("logit_gradient", pair),
    }
    launch = head_kernels.logit_gradient_kernel[(math.prod(chunks), band.n_samples)]
    launch(row_slope=parts, closing=False, **arguments)
    row_slopes = _summed(parts, per_row=True).contiguous()
    launch(row_slope=row_slopes, closing=True, **arguments)
    return row_slopes.transpose(1, 2) * bound[..., None]


def _add_to_added(
    total: Float[Tensor, "..."], to_logits: Tensor, bound: Float[Tensor, "sample student"], band: Band
) -> None:
    """Add the gradient of the scores of a band, summed over the axes along which what was added is broadcast."""
    shape = (band.n_samples, bound.shape[1], band.n_rows, band.pitch)
    n_keys = min(band.pitch, total.shape[3])
    part = to_logits[: band.n_samples * bound.shape[1] * band.size].view(shape)[..., :n_keys]
    part = part * (bound / _MAP_SCALE)[:, :, None, None]
    broadcast = [axis for axis in range(3) if total.shape[axis] == 1]
    if broadcast:
        part = part.sum(broadcast, keepdim=True)
    samples = slice(None) if total.shape[0] == 1 else band.samples
    rows = slice(None) if total.shape[2] == 1 else band.rows
    total[samples, :, rows, :n_keys] += part


def _like(gradient: Tensor | None, tensor: Tensor | None) -> Tensor | None:
    return None if gradient is None or tensor is None else gradient.to(tensor.dtype)


def _lines(band: Band, per_row: bool) -> tuple[dict[str, int], tuple[int, int]]:
    """How a sample's numbers are dealt to programs, and (lines, chunks of each)."""
    line = band.pitch if per_row else band.size
    lines = {"size": band.size, "line_length": line, "length": CHUNK}
    return lines, (band.size // line, int(triton.cdiv(line, CHUNK)))


def _summed(parts: Tensor, per_row: bool) -> Tensor:
    """The sum over the chunks of a line; one line is no axis."""
    return parts.sum(2) if per_row else parts.sum((1, 2))


def _precision(pair: Pair) -> str:
    """Of products with numbers that 16 bits cannot hold: as in float32."""
    return "tf32x3" if pair.is_half else "ieee"


def _options(kernel: str, pair: Pair) -> dict[str, int]:
    teacher_block, student_block = padded(pair.teacher.n_heads), padded(pair.student.n_heads)
    config = heads_config(kernel, max(teacher_block, student_block), pair.is_half)
    return {
        "teacher_block": teacher_block,
        "student_block": student_block,
        "block": config.numbers,
        "num_warps": config.warps,
        "num_stages": config.stages,
    }
