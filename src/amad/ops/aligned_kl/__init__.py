"""Divergence of each teacher head's map from the mixture of student heads that learns from it."""

from importlib import import_module

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.errors import ShapeError
from amad.ops.aligned_kl.reference import MASS_FLOOR
from amad.ops.alignment import check_temperature
from amad.ops.backends import choose_backend

__all__ = ["MASS_FLOOR", "aligned_kl", "row_aligned_kl"]


def aligned_kl(
    student: AttentionRecord, teacher: AttentionRecord, alignment: Float[Tensor, "batch teacher student"]
) -> Float[Tensor, "batch teacher"]:
    """KL of each teacher head from its mixture of student heads, in nats, averaged over the rows that count.

        kl_i = mean_q sum_k T_iqk log( T_iqk / sum_j a_ij S_jqk )

    Zhao et al. 2024, equation 9, read row by row; with rows that sum to one it equals the divergence of the
    flattened maps divided by their sums. Rows of which a sink takes a part are divided by their sum first, in
    both models and per head. 0 log 0 is 0. Where the mixture has less than 1e-30 (1e-12 in the Triton form of two
    models in 16 bits), it counts as that: the value is finite, and no gradient flows through that key.

    A row counts if it does in both models; a sample without one gives zero and zero gradient. Where the tokens of
    the two differ, the teacher's map is resampled (:func:`amad.ops.resampling.match_tokens`). Gradients flow to the
    student's query, key, position bias and float mask, and to the alignment. In float64 if either record is, else in
    float32. No map is built; see :func:`amad.ops.backends.operator_backend` for the forms.

    Args:
        student: The student's record.
        teacher: The teacher's record.
        alignment: a_ij, in which the student's heads sum to one.

    Raises:
        ShapeError: if the alignment has other heads or samples than the records, the batches differ, or the
            tokens differ and cannot be matched.
    """
    check_alignment(student, teacher, alignment)
    with torch.autocast(student.query.device.type, enabled=False):
        form = import_module(f"{__name__}.{choose_backend(student, teacher)}")
        found: Tensor = form.aligned_kl(student, teacher, alignment)
        return found


def check_alignment(student: AttentionRecord, teacher: AttentionRecord, alignment: Tensor) -> None:
    """Refuse an alignment of other heads or samples.

    Raises:
        ShapeError: if it has other heads or samples than the records.
    """
    expected = (student.n_batch, teacher.n_heads, student.n_heads)
    if tuple(alignment.shape) != expected:
        raise ShapeError(
            f"the alignment is {tuple(alignment.shape)}, but the records have (samples, teacher heads, student "
            f"heads) = {expected}. Make it from the same records."
        )


def row_aligned_kl(
    student: AttentionRecord,
    teacher: AttentionRecord,
    temperature: float = 1.0,
    detach_alignment: bool = False,
) -> Float[Tensor, "batch teacher"]:
    """As :func:`aligned_kl`, with an alignment of its own for each query row.

        kl_i = mean_q sum_k T_iqk log( T_iqk / sum_j a_ijq S_jqk ),
        a_ijq = softmax_j( <T_iq, S_jq> / (|T_iq| |S_jq|) / temperature )

    Zhao et al. 2024, equation 12, where rows are summed; here they are averaged, so that the term does not grow
    with the length.

    Args:
        student: The student's record.
        teacher: The teacher's record.
        temperature: Of the softmax over the student's heads.
        detach_alignment: Stop gradients through the alignment.

    Raises:
        ShapeError: as :func:`aligned_kl`.
        RecipeError: if the temperature is not above zero.
    """
    check_temperature(temperature)
    with torch.autocast(student.query.device.type, enabled=False):
        form = import_module(f"{__name__}.{choose_backend(student, teacher)}")
        found: Tensor = form.row_aligned_kl(student, teacher, temperature, detach_alignment)
        return found
