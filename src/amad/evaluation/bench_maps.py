"""The attention losses as one writes them from maps, and the same exactly: what the operators are measured against.

Nothing here uses ``amad.ops``.
"""

import math
from collections.abc import Iterator

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
    query, key = (tensor.detach().double().requires_grad_() for tensor in (student_query, student_key))
    teacher_query, teacher_key = teacher_query.detach().double(), teacher_key.detach().double()
    n_rows = query.shape[2]
    per_row = query.shape[0] * (query.shape[1] + teacher_query.shape[1]) * key.shape[2]
    step = max(block_numbers // per_row, 1)
    gradients = [torch.zeros_like(query), torch.zeros_like(key)]

    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, n_rows, step):
            rows = slice(first, first + step)
            yield maps(query[:, :, rows], key), maps(teacher_query[:, :, rows], teacher_key)

    def carry(outputs: tuple[Tensor, ...], cotangents: tuple[Tensor, ...] | None = None) -> None:
        for whole, part in zip(
            gradients, torch.autograd.grad(outputs, (query, key), cotangents), strict=True
        ):
            whole += part

    value = torch.zeros((), dtype=torch.float64, device=query.device)
    if op == "token":
        for student, teacher in blocks():
            part = loss_of_maps(op, student, teacher) * (student.shape[2] / n_rows)
            value += part.detach()
            carry((part,))
        return value, gradients[0], gradients[1]

    with torch.no_grad():
        sums = [
            torch.stack(parts).sum(0)
            for parts in zip(*(_products(*block) for block in blocks()), strict=True)
        ]
    cross, own, teacher_square = (one.requires_grad_() for one in sums)
    student_norm, teacher_norm = own.diagonal(dim1=1, dim2=2).sqrt(), teacher_square.sqrt()
    cosine = cross / (teacher_norm[:, :, None] * student_norm[:, None, :])
    alignment = cosine.softmax(-1)
    if op == "mse":
        among = own / (student_norm[:, :, None] * student_norm[:, None, :])
        mixed = torch.einsum("bij,bjl,bil->bi", alignment, among, alignment)
        loss = (1 - 2 * (alignment * cosine).sum(-1) + mixed).sum() / len(query)
        value += loss.detach()
        cotangents = torch.autograd.grad(loss, (cross, own))
    else:
        given = alignment.detach().requires_grad_()
        to_alignment = torch.zeros_like(given)
        for student, teacher in blocks():
            mixture = torch.matmul(given, student.flatten(2)).clamp_min(TINY)
            teacher = teacher.flatten(2)
            part = (teacher * (teacher.clamp_min(TINY).log() - mixture.log())).sum() / (n_rows * len(query))
            value += part.detach()
            to_alignment += torch.autograd.grad(part, given, retain_graph=True)[0]
            carry((part,))
        cotangents = torch.autograd.grad(alignment, (cross, own), to_alignment)
    for block in blocks():
        carry(_products(*block)[:2], cotangents)
    return value, gradients[0], gradients[1]


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
