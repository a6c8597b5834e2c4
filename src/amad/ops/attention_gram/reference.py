"""Inner products of attention maps, from dense maps: the definition."""

from collections.abc import Iterable
from functools import reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.maps import MapBlock, map_blocks, whole_map


class AttentionGram(NamedTuple):
    """Inner products of the flattened maps of one layer pair, over the rows that count.

    Attributes:
        cross: <t_i, s_j>.
        student: <s_j, s_l>.
        teacher_norm: <t_i, t_i>, the squared norm.
    """

    cross: Float[Tensor, "*sample teacher student"]
    student: Float[Tensor, "*sample student student"]
    teacher_norm: Float[Tensor, "*sample teacher"]

    def __add__(self, other: "AttentionGram") -> "AttentionGram":  # type: ignore[override]
        """The inner products of maps over the rows of both."""
        return AttentionGram(*(mine + its for mine, its in zip(self, other, strict=True)))


def attention_gram(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_gram`."""
    return sum_of_grams(gram_of_block(block) for block in map_blocks(student, teacher))


def attention_row_grams(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """See :func:`amad.ops.attention_gram.attention_row_grams`."""
    return row_grams_of_maps(whole_map(student, teacher))


def sum_of_grams(grams: Iterable[AttentionGram]) -> AttentionGram:
    """Inner products over the rows of all blocks."""
    return reduce(AttentionGram.__add__, grams)


def row_grams_of_maps(block: MapBlock) -> AttentionGram:
    """The same for every row on its own: (sample, ...), where a sample is a row of the batch."""
    student, teacher = block.by_row()
    transposed = student.transpose(1, 2)
    return AttentionGram(
        cross=torch.bmm(teacher, transposed),
        student=torch.bmm(student, transposed),
        teacher_norm=torch.linalg.vector_norm(teacher, dim=-1).square(),
    )


def gram_of_block(block: MapBlock) -> AttentionGram:
    """Inner products (batch, ...) over the rows of a block, summed over short pieces.

    One float32 dot product over a whole map of N^2 numbers would be off by 1e-3 at N = 2,048.
    """
    n_batch, n_students = block.student.shape[:2]
    cross = block.student.new_zeros(n_batch, block.teacher.shape[1], n_students)
    own = block.student.new_zeros(n_batch, n_students, n_students)
    for student, teacher in block.partials():
        transposed = student.transpose(1, 2)
        cross = torch.baddbmm(cross, teacher, transposed)
        own = torch.baddbmm(own, student, transposed)
    return AttentionGram(cross, own, torch.linalg.vector_norm(block.teacher, dim=-1).square().sum(-1))
