"""Distance of attention scores before the softmax."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, ShapeError
from amad.losses.blocks import over_rows, rows_of_a_block
from amad.ops.aligned_kl.reference import mean_over_rows
from amad.ops.resampling import common_dtype, match_tokens


def score_distance(student: AttentionRecord, teacher: AttentionRecord) -> Float[Tensor, "batch teacher"]:
    """Squared difference of the scores of head k of both models, before the softmax.

        mean_{q, v} ( z^T_kqv - z^S_kqv )^2    for k < min(Ht, Hs), and 0 for teacher heads beyond

    over the query rows q that count in both models and the keys v that both may attend. TinyBERT (Jiao et al. 2020,
    arXiv:1909.10351), equation 7, which is the mean over heads. Scores are what the softmax is taken of: scaled
    products, with a position bias where there is one. A constant added to a row of scores changes the value, though it
    does not change the map. It grows with the square of the scores and has no upper bound.

    The operators know maps and not scores, so this is computed in blocks of rows that are made again for the backward
    pass. Zero for a sample without a row that counts.

    Raises:
        CaptureError: if a record holds a map and no scores.
        ShapeError: if student and teacher have different tokens.
    """
    for who, record in (("student", student), ("teacher", teacher)):
        if record.probabilities is not None:
            raise CaptureError(
                f"scores of {record.site} of the {who} are not known: its module shows a map alone. Use another "
                "variant, or leave its stack out of objective.attention.stacks."
            )
    _, on_teacher = match_tokens(student, teacher)
    if on_teacher is not teacher:
        raise ShapeError(
            f"scores of {student.site} are compared key by key, but the tokens of student and teacher differ: "
            f"{student.n_queries} x {student.n_keys} and {teacher.n_queries} x {teacher.n_keys}. Use variant kl or mse."
        )
    n_heads = min(student.n_heads, teacher.n_heads)
    dtype = common_dtype(student, teacher)

    def measure(rows: slice) -> tuple[Tensor, Tensor]:
        keep = (student.keep(rows) & teacher.keep(rows))[:, None, :, None]
        both = keep.expand(-1, n_heads, -1, student.n_keys)
        for record in (student, teacher):
            visible = record.visible(rows)
            if visible is not None:
                both = both & visible[:, :n_heads]
        with torch.no_grad():
            aim = teacher.logits(rows, dtype)[:, :n_heads].masked_fill(~both, 0.0)
        scores = student.logits(rows, dtype)[:, :n_heads].masked_fill(~both, 0.0)
        return (scores - aim).square().sum((-1, -2)), both.sum((-1, -2))

    found = mean_over_rows(over_rows(student, rows_of_a_block(student, teacher), measure))
    return functional.pad(found, (0, teacher.n_heads - n_heads))
