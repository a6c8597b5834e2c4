"""What the alignment of one layer pair looks like, in a few numbers."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl import aligned_kl
from amad.ops.alignment import cosines
from amad.ops.attention_gram import AttentionGram


class AlignmentFigures(NamedTuple):
    """How sharp an alignment is and how well a student's heads cover a teacher's, over the samples of one batch.

    Attributes:
        entropy: Mean entropy of a_ij over the student's heads, divided by its largest value log Hs: 1 is uniform,
            0 is one head. 1 if the student has one head. Teacher heads that teach nobody do not count.
        largest: Mean over teacher heads that teach of the largest a_ij.
        coverage: Mean over teacher heads of ``coverage_by_head``.
        collapse: Mean cosine of two different student heads; 1 when all are the same. 0 if there is one head.
        weights: Mean a_ij: a row per teacher head, a column per student head.
        coverage_by_head: Per teacher head, the KL of its map from the nearest student head's in nats. Divergences are
            averaged over samples first, so the nearest head is the same for all.
        alike: Mean cosine of every two student heads; 1 on the diagonal.
    """

    entropy: float
    largest: float
    coverage: float
    collapse: float
    weights: tuple[tuple[float, ...], ...]
    coverage_by_head: tuple[float, ...]
    alike: tuple[tuple[float, ...], ...]


def alignment_figures(
    student: AttentionRecord,
    teacher: AttentionRecord,
    gram: AttentionGram,
    alignment: Float[Tensor, "sample teacher student"],
    counted: Bool[Tensor, " sample"],
) -> AlignmentFigures:
    """The figures of one layer pair.

    Args:
        student: The student's record.
        teacher: The teacher's record.
        gram: Inner products of their whole maps, per sample of the batch.
        alignment: a_ij per sample, or per query row.
        counted: Which of these samples or rows count. All figures but the coverage by head are zero where none does.
    """
    n_students = alignment.shape[-1]
    kept = alignment[counted]
    n_kept = max(len(kept), 1)
    n_taught = max(int(kept.any(-1).sum()), 1)
    entropy = torch.special.entr(kept).sum() / n_taught
    real = gram.teacher_norm.sum(-1) > 0
    n_real = max(int(real.sum()), 1)
    alike = cosines(gram).student.sum(0) / n_real
    off_diagonal = alike.sum() - alike.diagonal().sum()
    collapse = off_diagonal / max(n_students * (n_students - 1), 1)
    distances = torch.stack([_divergence_from(student, teacher, head) for head in range(n_students)], -1)
    coverage = (distances.sum(0) / n_real).amin(-1)
    weights = (kept.sum(0) / n_kept).tolist()
    return AlignmentFigures(
        entropy=1.0 if n_students == 1 else float(entropy) / math.log(n_students),
        largest=float(kept.amax(-1).sum() / n_taught),
        coverage=float(coverage.mean()),
        collapse=0.0 if n_students == 1 else float(collapse),
        weights=tuple(tuple(row) for row in weights),
        coverage_by_head=tuple(coverage.tolist()),
        alike=tuple(tuple(row) for row in alike.tolist()),
    )


def _divergence_from(student: AttentionRecord, teacher: AttentionRecord, head: int) -> Tensor:
    """KL (batch, teacher) of every teacher head from one student head."""
    only = torch.zeros(student.n_batch, teacher.n_heads, student.n_heads, device=student.query.device)
    only[:, :, head] = 1.0
    return aligned_kl(student, teacher, only)
