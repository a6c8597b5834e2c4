"""The attention losses as one writes them from maps, and the same exactly: what the operators are measured against.

Nothing here uses ``amad.ops``.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

TINY = 1e-30
"""The least that goes into a logarithm."""

BLOCK_NUMBERS = 1 << 22
"""Numbers of the two maps that the exact loss holds at once, times a few copies."""


def maps(
    query: Float[Tensor, "batch head query width"], key: Float[Tensor, "batch head key width"]
) -> Float[Tensor, "batch head query key"]:
    """Attention probabilities; in float64 of float64 tensors, in float32 of all others."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, -1, dtype=dtype)


def loss_of_maps(
    op: str,
    student: Float[Tensor, "batch student query key"],
    teacher: Float[Tensor, "batch teacher query key"],
) -> Float[Tensor, ""]:
    """Loss ``mse``, ``kl`` or ``token`` of :class:`amad.losses.amad.AttentionAlignment`, temperature 1, batch mean."""
    if op == "token":
        student, teacher = student.transpose(1, 2), teacher.transpose(1, 2)
        n_rows = student.shape[0] * student.shape[1]
    else:
        n_rows = student.shape[0] * student.shape[2]
        student, teacher = student.flatten(2), teacher.flatten(2)
    student_direction = nn.functional.normalize(student, dim=-1)
    teacher_direction = nn.functional.normalize(teacher, dim=-1)
    alignment = torch.matmul(teacher_direction, student_direction.transpose(-1, -2)).softmax(-1)
    if op == "mse":
        mixture = torch.matmul(alignment, student_direction)
        return (teacher_direction - mixture).square().sum() / len(student)
    mixture = torch.matmul(alignment, student).clamp_min(TINY)
    return (teacher * (teacher.clamp_min(TINY).log() - mixture.log())).sum() / n_rows


def naive_loss(
    op: str, student_query: Tensor, student_key: Tensor, teacher_query: Tensor, teacher_key: Tensor
) -> Float[Tensor, ""]:
    """The loss from query and key by way of whole maps."""
    return loss_of_maps(op, maps(student_query, student_key), maps(teacher_query, teacher_key))


class _Rows(NamedTuple):
    """Which query rows a block has, and the student's queries of them as a leaf."""

    rows: slice
    query: Tensor


def exact_loss(
    op: str,
    student_query: Float[Tensor, "batch student query width"],
    student_key: Float[Tensor, "batch student key width"],
    teacher_query: Float[Tensor, "batch teacher query width"],
    teacher_key: Float[Tensor, "batch teacher key width"],
    block_numbers: int = BLOCK_NUMBERS,
) -> tuple[
    Float[Tensor, ""], Float[Tensor, "batch student query width"], Float[Tensor, "batch student key width"]
]:
    """The loss and its gradients to the student's query and key, in float64, in blocks of query rows.

    ``token`` is a mean over rows. The other two are functions of sums over rows: the sums are taken first, then
    differentiated as numbers of their own, and their gradients are carried on to query and key block by block.
    So no block needs another, and memory grows with a block and not with the map.
    """
    query, key, teacher_query, teacher_key = (
        tensor.detach().double() for tensor in (student_query, student_key, teacher_query, teacher_key)
    )
    key.requires_grad_()
    to_query, to_key = torch.zeros_like(query), torch.zeros_like(key)
    n_rows = query.shape[2]
    per_row = query.shape[0] * (query.shape[1] + teacher_query.shape[1]) * key.shape[2]
    step = max(block_numbers // per_row, 1)

    def blocks() -> Iterator[tuple[Tensor, Tensor, _Rows]]:
        for first in range(0, n_rows, step):
            rows = slice(first, first + step)
            own = _Rows(rows, query[:, :, rows].requires_grad_())
            yield maps(own.query, key), maps(teacher_query[:, :, rows], teacher_key), own

    def carry(own: _Rows, outputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None) -> None:
        parts = torch.autograd.grad(outputs, (own.query, key), cotangents)
        to_query[:, :, own.rows] += parts[0]
        to_key.add_(parts[1])

    value = torch.zeros((), dtype=torch.float64, device=query.device)
    if op == "token":
        for student, teacher, own in blocks():
            part = loss_of_maps(op, student, teacher) * (student.shape[2] / n_rows)
            value += part.detach()
            carry(own, [part])
        return value, to_query, to_key

    n_batch, n_student, n_teacher = len(query), query.shape[1], teacher_query.shape[1]
    # Added up in place: small tensors that live on between large ones would keep the allocator from reusing memory.
    cross, among = (
        query.new_zeros(n_batch, n_teacher, n_student),
        query.new_zeros(n_batch, n_student, n_student),
    )
    teacher_square = query.new_zeros(n_batch, n_teacher)
    with torch.no_grad():
        for student, teacher, _ in blocks():
            for whole, part in zip((cross, among, teacher_square), _products(student, teacher), strict=True):
                whole += part
    cross.requires_grad_()
    among.requires_grad_()
    student_norm, teacher_norm = among.diagonal(dim1=1, dim2=2).sqrt(), teacher_square.sqrt()
    cosine = cross / (teacher_norm[:, :, None] * student_norm[:, None, :])
    alignment = cosine.softmax(-1)
    if op == "mse":
        angles = among / (student_norm[:, :, None] * student_norm[:, None, :])
        mixed = torch.einsum("bij,bjl,bil->bi", alignment, angles, alignment)
        loss = (1 - 2 * (alignment * cosine).sum(-1) + mixed).sum() / len(query)
        value += loss.detach()
        cotangents = torch.autograd.grad(loss, (cross, among))
    else:
        given = alignment.detach().requires_grad_()
        to_alignment = torch.zeros_like(given)
        for student, teacher, own in blocks():
            mixture = torch.matmul(given, student.flatten(2)).clamp_min(TINY)
            teacher = teacher.flatten(2)
            part = (teacher * (teacher.clamp_min(TINY).log() - mixture.log())).sum() / (n_rows * len(query))
            value += part.detach()
            to_alignment += torch.autograd.grad(part, given, retain_graph=True)[0]
            carry(own, [part])
        cotangents = torch.autograd.grad(alignment, (cross, among), to_alignment)
    for student, teacher, own in blocks():
        carry(own, _products(student, teacher)[:2], cotangents)
    return value, to_query, to_key


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of what is exact; 0 where both are zero, infinite where not finite."""
    difference = (found.detach().double() - exact).norm().item()
    if not math.isfinite(difference):
        return math.inf
    return difference / size if (size := exact.norm().item()) else (math.inf if difference else 0.0)


def _products(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of the rows of a block: teacher with student, student with student, teacher with itself."""
    student, teacher = student.flatten(2), teacher.flatten(2)
    transposed = student.transpose(1, 2)
    return torch.matmul(teacher, transposed), torch.matmul(student, transposed), teacher.square().sum(-1)
