"""Inner products of a student's and a teacher's attention maps: all that alignment and the ``mse`` loss need."""

from importlib import import_module

import torch

from amad.capture.record import AttentionRecord
from amad.ops.attention_gram import chunked, reference
from amad.ops.attention_gram.reference import AttentionGram
from amad.ops.backends import choose_backend

__all__ = ["AttentionGram", "attention_gram", "attention_row_grams"]


def attention_gram(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """Inner products of the flattened maps of two sites, per sample.

        cross_ij   = <t_i, s_j>        student_jl = <s_j, s_l>        teacher_norm_i = <t_i, t_i>

    over the query rows that count in both models; a sample without one has zeros. Maps are taken as they are:
    where a sink takes probability, a row counts for less. Where the tokens of the two differ, the teacher's map is
    resampled (:func:`amad.ops.resampling.match_tokens`). Zhao et al. 2024, the products in equations 1-6.

    Gradients flow to the student's query, key, position bias, float mask and sinks. In float64 if either record is,
    else in float32. No map is built: the most that exists at a time is a few rows. The form is chosen as
    :func:`amad.ops.backends.operator_backend` says.

    Raises:
        ShapeError: if the batches differ, or the tokens differ and cannot be matched.
    """
    with torch.autocast(student.query.device.type, enabled=False):
        form = import_module(f"{__name__}.{choose_backend(student, teacher)}")
        found: AttentionGram = form.attention_gram(student, teacher)
        return found


@torch.no_grad()
def attention_row_grams(student: AttentionRecord, teacher: AttentionRecord) -> AttentionGram:
    """The same inner products for every query row on its own, without gradients: to look at.

    The axis ``sample`` runs over the rows of the first sample, then of the second, and so on; a row that does not
    count is zero. See :func:`attention_gram` for everything else.
    """
    with torch.autocast(student.query.device.type, enabled=False):
        if choose_backend(student, teacher) == "reference":
            return reference.attention_row_grams(student, teacher)
        return chunked.attention_row_grams(student, teacher)
