"""Two records ready for the kernels, split into bands whose maps are made one after the other."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.errors import ShapeError
from amad.ops.bands import unsupported
from amad.ops.bands.launch import MOST_PROGRAMS, fill, log_denominators
from amad.ops.bands.workspace import Band, Workspace
from amad.ops.resampling import match_tokens

WORKSPACE_BYTES = 64 << 20
"""The maps of a band, of both models, take at most this much (or what 16 rows take, if that is more)."""

ALIGNMENT = 16
"""Rows of the workspace start at multiples of it."""


@dataclass(frozen=True)
class Pair:
    """Two records ready for the kernels, with the denominators of their rows.

    Attributes:
        student: The student's record, as :func:`prepared`.
        teacher: The teacher's.
        student_lse: Log of the denominators to the base 2; +inf for rows that do not count.
        teacher_lse: The same of the teacher.
        keep: Rows that count in both.
    """

    student: AttentionRecord
    teacher: AttentionRecord
    student_lse: Float[Tensor, "batch student row"]
    teacher_lse: Float[Tensor, "batch teacher row"]
    keep: Bool[Tensor, "batch row"]

    @classmethod
    def of(cls, student: AttentionRecord, teacher: AttentionRecord, whole: bool) -> "Pair":
        """Of two prepared records; where ``whole``, sinks take nothing from the rows."""
        student, teacher = student.detach(), teacher.detach()
        if whole:
            student, teacher = replace(student, sinks=None), replace(teacher, sinks=None)
        denominators = [log_denominators(record) for record in (student, teacher)]
        keep = (denominators[0] != math.inf).any(1) & (denominators[1] != math.inf).any(1)
        for record in (student, teacher):
            if record.query_keep is not None:
                keep = keep & record.query_keep
        student_lse, teacher_lse = (lse.masked_fill_(~keep[:, None], math.inf) for lse in denominators)
        return cls(student, teacher, student_lse, teacher_lse, keep)

    @property
    def is_half(self) -> bool:
        """Whether maps are stored in float16: where both models compute in 16 bits."""
        return self.student.query.dtype.itemsize == 2 and self.teacher.query.dtype.itemsize == 2

    def bands(self, n_maps: int) -> Iterator[Band]:
        """Bands of at most ``WORKSPACE_BYTES``, with so many maps for each of the student's heads."""
        n_batch, n_students, n_queries, _ = self.student.map_shape
        n_heads = n_maps * n_students + self.teacher.n_heads
        n_rows = WORKSPACE_BYTES // (n_heads * self._pitch(n_queries) * (2 if self.is_half else 4))
        step = 1
        if n_rows >= n_queries:
            most = MOST_PROGRAMS // max(n_students, self.teacher.n_heads)
            step, n_rows = min(n_rows // n_queries, most), n_queries
        else:
            n_rows = max(n_rows // 64 * 64, ALIGNMENT)
        for sample in range(0, n_batch, step):
            for row in range(0, n_queries, n_rows):
                here = min(n_rows, n_queries - row)
                yield Band(sample, min(step, n_batch - sample), row, here, self._pitch(row + here))

    def workspace(self, with_gradients: bool = False) -> Workspace:
        """Memory for the largest band."""
        capped = with_gradients and self.student.softcap is not None
        largest = max(band.n_samples * band.size for band in self.bands(1 + with_gradients + capped))
        dtype = torch.float16 if self.is_half else torch.float32

        def maps(record: AttentionRecord) -> Tensor:
            return torch.empty(record.n_heads * largest, dtype=dtype, device=record.query.device)

        return Workspace(
            teacher=maps(self.teacher),
            student=maps(self.student),
            to_logits=maps(self.student) if with_gradients else None,
            cap_slopes=maps(self.student) if capped else None,
        )

    def filled(self, workspace: Workspace) -> Iterator[Band]:
        """The bands, each while its maps are in the workspace."""
        n_maps = 1 + sum(part is not None for part in (workspace.to_logits, workspace.cap_slopes))
        for band in self.bands(n_maps):
            fill(self.teacher, self.teacher_lse, band, workspace.teacher, None)
            fill(self.student, self.student_lse, band, workspace.student, workspace.cap_slopes)
            yield band

    def _pitch(self, n_rows: int) -> int:
        """Columns up to the last key that the first ``n_rows`` rows of either model may attend."""
        reach = max(_reach(record, n_rows) for record in (self.student, self.teacher))
        return int(triton.cdiv(max(reach, 1), ALIGNMENT)) * ALIGNMENT


def prepared(student: AttentionRecord, teacher: AttentionRecord) -> tuple[AttentionRecord, AttentionRecord]:
    """Both records with query and key of one dtype, spelt out over the batch and dense along the width.

    Raises:
        ShapeError: if the batches differ, or :func:`amad.ops.bands.unsupported` has a reason.
    """
    reason = unsupported(student, teacher)
    if reason is not None:
        raise ShapeError(
            f"the Triton kernels do not take these records, as {reason}. Call the operator without 'triton'."
        )
    match_tokens(student, teacher)
    return _prepared(student), _prepared(teacher.detach())


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Kernels launched within it go to the tensor's GPU."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _prepared(record: AttentionRecord) -> AttentionRecord:
    dtype = torch.promote_types(record.query.dtype, record.key.dtype)
    query, key = (
        tensor.to(dtype).expand(record.n_batch, -1, -1, -1) for tensor in (record.query, record.key)
    )
    return replace(
        record,
        query=query if query.stride(3) == 1 else query.contiguous(),
        key=key if key.stride(3) == 1 else key.contiguous(),
    )


def _reach(record: AttentionRecord, n_rows: int) -> int:
    reach = record.n_keys
    if record.causal_offset is not None:
        reach = min(reach, n_rows + record.causal_offset)
    if record.window is not None:
        reach = min(reach, n_rows - 1 + record.n_keys - record.n_queries + record.window)
    return reach
