"""A teacher's map on the student's tokens, where the two models cut the image into different patches."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord, TokenLayout
from amad.errors import ShapeError

MOST_UNMATCHED_TOKENS = 2
"""Only a class and a distillation token may be there in one model and not in the other."""


@dataclass(frozen=True)
class ResampledMap:
    """A teacher's map on the student's tokens, T' = R T C, of which rows are made when they are asked for.

    Attributes:
        record: The teacher's own record.
        queries: R, or None where the query axes agree.
        keys: C, or None where the key axes agree.
    """

    record: AttentionRecord
    queries: Float[Tensor, "query teacher_query"] | None
    keys: Float[Tensor, "teacher_key key"] | None

    @property
    def n_batch(self) -> int:
        """Samples."""
        return self.record.n_batch

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.record.n_heads

    @property
    def n_queries(self) -> int:
        """Rows of the map on the student's tokens."""
        return self.record.n_queries if self.queries is None else self.queries.shape[0]

    @property
    def n_keys(self) -> int:
        """Columns of the map on the student's tokens."""
        return self.record.n_keys if self.keys is None else self.keys.shape[1]

    @property
    def is_whole(self) -> bool:
        """Rows that are not zero sum to one."""
        return True

    def samples(self, samples: slice) -> "ResampledMap":
        """The map of these samples only."""
        return replace(self, record=self.record.samples(samples))

    @torch.no_grad()
    def rows(
        self, rows: slice = slice(None), dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch head row key"]:
        """Attention probabilities of these query rows; zero for a row that does not count."""
        own = self._own_rows(rows)
        maps = self.record.rows(own, dtype).masked_fill(~self._counted(own)[:, None, :, None], 0.0)
        if self.keys is not None:
            maps = torch.matmul(maps, self.keys.to(maps))
        maps = whole(maps)
        if self.queries is not None:
            # Rows that do not count are zero, so dividing by the sum makes this the mean over those that do.
            maps = whole(torch.matmul(self.queries[rows, own].to(maps), maps))
        return maps

    def keep(self, rows: slice = slice(None)) -> Bool[Tensor, "batch row"]:
        """True for rows that a row of the teacher's that counts is part of."""
        own = self._own_rows(rows)
        counted = self._counted(own)
        if self.queries is None:
            return counted
        share = self.queries[rows, own].to(counted.device)
        return torch.matmul(counted.to(share.dtype), share.T) > 0

    def _own_rows(self, rows: slice) -> slice:
        """The teacher's rows from the first to the last that these are made of."""
        if self.queries is None:
            return rows
        needed = (self.queries[rows] > 0).any(0).nonzero()
        return slice(int(needed[0]), int(needed[-1]) + 1) if len(needed) else slice(0, 0)

    def _counted(self, own: slice) -> Tensor:
        """The teacher's rows that are real and may attend at least one key that the student has."""
        keep = self.record.keep(own)
        visible = self.record.visible(own)
        if self.keys is None or visible is None:
            return keep
        matched = (self.keys > 0).any(1).to(visible.device)
        return keep & (visible & matched).any(-1).any(1)


TeacherMap = AttentionRecord | ResampledMap
"""What a teacher's rows are taken from."""


def check_same_batch(student: AttentionRecord, teacher: AttentionRecord) -> None:
    """Refuse records of different numbers of samples, which no form of an operator could compare.

    Raises:
        ShapeError: naming both.
    """
    if student.n_batch != teacher.n_batch:
        raise ShapeError(
            f"student and teacher saw different batches: {student.n_batch} and {teacher.n_batch} samples, or windows "
            f"of them, at {student.site} and {teacher.site}. Record both on the same inputs; where attention is over "
            "windows, choose models with as many of them, or leave the pair out."
        )


def match_tokens(student: AttentionRecord, teacher: AttentionRecord) -> tuple[AttentionRecord, TeacherMap]:
    """Both on the student's tokens; the records themselves where the axes already agree.

    An axis agrees if it is equally long in both and not laid out as two different grids. Where it does not, both
    records must say where its patches lie, and the teacher's map is resampled:

        T'_qk = sum_q' sum_k' R_qq' T_q'k' C_k'k

    On the key axis, C shares the probability of a teacher's patch among the student's patches that it covers, by
    the area of the overlap: nothing is gained or lost. Rows are then divided by their sum. On the query axis, R is
    the mean over the teacher's patches that a student's patch covers, weighted by the same areas and taken over the
    teacher's rows that count: each row of R sums to one.

    Single tokens before and after the grid are matched one to one. Where the numbers before it differ and
    neither is over two (class and distillation token: 0 and 1, 1 and 2, 0 and 2), the first ones are matched; the
    rest leaves both maps: as a query it does not count, as a key it is hidden, and the other keys share its
    probability. The token kept is the class token, as it comes first in every model that has both.

    Raises:
        ShapeError: if the batches differ or are empty, or axes differ in length and either layout is missing or the
            single tokens cannot be matched.
    """
    check_same_batch(student, teacher)
    if 0 in student.map_shape or 0 in teacher.map_shape:
        raise ShapeError(
            f"maps of {student.site} (student) and {teacher.site} (teacher) are {student.map_shape} and "
            f"{teacher.map_shape} samples, heads, queries and keys: each must have one at least. Leave this batch out."
        )
    queries = _axis(student, teacher, student.query_layout, teacher.query_layout, 2)
    keys = _axis(student, teacher, student.key_layout, teacher.key_layout, 3)
    if queries is None and keys is None:
        return student, teacher
    share = None if keys is None else keys / keys.sum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return _limit_student(student, queries, keys), ResampledMap(
        teacher, queries, None if share is None else share.T
    )


def common_dtype(student: AttentionRecord, teacher: AttentionRecord) -> torch.dtype:
    """What two records are compared in: float64 if either holds float64, float32 otherwise."""
    tensors = [student.query, student.probabilities, teacher.query, teacher.probabilities]
    is_double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def grid_overlap(
    student: tuple[int, int], teacher: tuple[int, int]
) -> Float[Tensor, "student_patch teacher_patch"]:
    """Area of the overlap of each two patches of two grids (height, width) over one image of area one."""
    rows = _interval_overlap(student[0], teacher[0])
    columns = _interval_overlap(student[1], teacher[1])
    return torch.kron(rows, columns)


def _interval_overlap(n_student: int, n_teacher: int) -> Tensor:
    # In units of 1 / (n_student n_teacher) the borders are whole numbers, so patches that touch overlap by zero.
    student = torch.arange(n_student)[:, None] * n_teacher
    teacher = torch.arange(n_teacher)[None, :] * n_student
    upper = torch.minimum(student + n_teacher, teacher + n_student)
    length = (upper - torch.maximum(student, teacher)).clamp(min=0)
    return length.double() / (n_student * n_teacher)


def _axis(
    student: AttentionRecord,
    teacher: AttentionRecord,
    student_layout: TokenLayout | None,
    teacher_layout: TokenLayout | None,
    axis: int,
) -> Tensor | None:
    """Overlap of the tokens of one axis (student, teacher); None where they agree."""
    n_student, n_teacher = student.map_shape[axis], teacher.map_shape[axis]
    laid_out = student_layout is not None and teacher_layout is not None
    if n_student == n_teacher and (not laid_out or student_layout == teacher_layout):
        return None
    if student_layout is None or teacher_layout is None:
        raise _refusal(student, teacher, "and where the patches lie is not known for both")
    if (student_layout.n_tokens, teacher_layout.n_tokens) != (n_student, n_teacher):
        raise _refusal(
            student, teacher, f"and the layouts {student_layout}, {teacher_layout} are of other lengths"
        )
    before = min(student_layout.before, teacher_layout.before)
    most = max(student_layout.before, teacher_layout.before)
    if student_layout.after != teacher_layout.after or (before != most and most > MOST_UNMATCHED_TOKENS):
        raise _refusal(
            student,
            teacher,
            f"and the tokens outside of the grids, {student_layout.before} + {student_layout.after} and "
            f"{teacher_layout.before} + {teacher_layout.after}, cannot be matched",
        )
    overlap = torch.zeros(n_student, n_teacher, dtype=torch.float64)
    overlap[:before, :before] = torch.eye(before)
    grid = grid_overlap(student_layout[1:3], teacher_layout[1:3])
    first, last = student_layout.before, teacher_layout.before
    overlap[first : first + grid.shape[0], last : last + grid.shape[1]] = grid
    after = student_layout.after
    if after:
        overlap[-after:, -after:] = torch.eye(after)
    return overlap


def _refusal(student: AttentionRecord, teacher: AttentionRecord, why: str) -> ShapeError:
    return ShapeError(
        f"maps of {student.site} (student) and {teacher.site} (teacher) are {student.n_queries} x {student.n_keys} "
        f"and {teacher.n_queries} x {teacher.n_keys} tokens, {why}. Give both models the same tokens, or images "
        "cut into patches, or leave this pair out."
    )


def _limit_keys(record: AttentionRecord, matched: Tensor) -> AttentionRecord:
    """The record with only these keys to attend."""
    if bool(matched.all()):
        return record
    matched = matched.to(record.query.device)
    if record.probabilities is not None:
        hidden = matched[None, None, None, :]
        return replace(record, probabilities=record.probabilities * matched, mask=hidden)
    visible = matched[None, None, None, :].expand(1, 1, record.n_queries, -1)
    mask = record.mask
    if mask is None:
        return replace(record, mask=visible)
    if mask.dtype == torch.bool:
        return replace(record, mask=mask & visible)
    return replace(record, mask=mask.masked_fill(~visible, float("-inf")))


def _limit_student(student: AttentionRecord, queries: Tensor | None, keys: Tensor | None) -> AttentionRecord:
    if keys is not None:
        student = _limit_keys(student, keys.sum(1) > 0)
    if queries is not None:
        matched = (queries.sum(1) > 0).to(student.query.device)[None]
        keep = student.query_keep
        student = replace(student, query_keep=matched if keep is None else keep & matched)
    return student


def whole(rows: Float[Tensor, "*any key"]) -> Float[Tensor, "*any key"]:
    """Rows divided by their sum; a row of zeros stays one."""
    mass = rows.sum(-1, keepdim=True)
    return rows / torch.where(mass > 0, mass, 1.0)
