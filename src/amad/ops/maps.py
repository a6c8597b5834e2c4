"""The maps of a student and of a teacher, dense, in blocks of query rows: what the definitions work on."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.resampling import TeacherMap, common_dtype, match_tokens

BLOCK_NUMBERS = 1 << 25
"""A block holds at most so many numbers (128 MiB in float32), teacher and student together."""

PARTIAL_NUMBERS = 1 << 13
"""At most so many numbers of a flattened map are multiplied and summed at once: a longer float32 sum loses digits."""


class MapBlock(NamedTuple):
    """Some query rows of the maps of two sites.

    Attributes:
        student: The student's rows; zero where ``keep`` is False.
        teacher: The teacher's, likewise, with no gradient behind them.
        keep: True for rows that count in both models.
        student_is_whole: Rows of the student's map sum to one, as far as they count.
        teacher_is_whole: The same for the teacher's.
    """

    student: Float[Tensor, "batch student row key"]
    teacher: Float[Tensor, "batch teacher row key"]
    keep: Bool[Tensor, "batch row"]
    student_is_whole: bool
    teacher_is_whole: bool

    def partials(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Flattened pieces (batch, head, number) of the student's and the teacher's rows, short enough to sum."""
        n_rows = max(PARTIAL_NUMBERS // max(self.student.shape[3], 1), 1)
        for first in range(0, self.student.shape[2], n_rows):
            rows = slice(first, first + n_rows)
            yield self.student[:, :, rows].flatten(2), self.teacher[:, :, rows].flatten(2)

    def by_row(self) -> tuple[Float[Tensor, "sample student key"], Float[Tensor, "sample teacher key"]]:
        """The maps with every row of every sample as a sample of its own."""
        student = self.student.transpose(1, 2).reshape(-1, self.student.shape[1], self.student.shape[3])
        teacher = self.teacher.transpose(1, 2).reshape(-1, self.teacher.shape[1], self.teacher.shape[3])
        return student, teacher


def map_blocks(student: AttentionRecord, teacher: AttentionRecord) -> Iterator[MapBlock]:
    """The maps of two records on the student's tokens, as consecutive blocks of query rows.

    A row counts if both models say that it does. Computed in :func:`amad.ops.resampling.common_dtype`.

    Raises:
        ShapeError: as :func:`amad.ops.resampling.match_tokens`.
    """
    dtype = common_dtype(student, teacher)
    on_student, on_teacher = match_tokens(student, teacher)
    per_row = student.n_batch * (student.n_heads + teacher.n_heads) * student.n_keys
    n_rows = max(min(BLOCK_NUMBERS // max(per_row, 1), student.n_queries), 1)
    for rows in on_student.row_slices(n_rows):
        yield map_block(on_student, on_teacher, rows, dtype)


def whole_map(student: AttentionRecord, teacher: AttentionRecord) -> MapBlock:
    """All rows as one block, however large; see :func:`map_blocks`."""
    on_student, on_teacher = match_tokens(student, teacher)
    return map_block(on_student, on_teacher, slice(0, on_student.n_queries), common_dtype(student, teacher))


def map_block(student: AttentionRecord, teacher: TeacherMap, rows: slice, dtype: torch.dtype) -> MapBlock:
    """These rows of two maps that are on the same tokens."""
    keep = student.keep(rows) & teacher.keep(rows)
    with torch.no_grad():
        teacher_rows = teacher.rows(rows, dtype)
    student_rows = student.rows(rows, dtype)
    # On a GPU asking whether any row is padded would wait for the device; there the fill is cheap.
    if keep.is_cuda or not bool(keep.all()):
        padded = ~keep[:, None, :, None]
        teacher_rows = teacher_rows.masked_fill(padded, 0.0)
        student_rows = student_rows.masked_fill(padded, 0.0)
    return MapBlock(student_rows, teacher_rows, keep, student.is_whole, teacher.is_whole)
