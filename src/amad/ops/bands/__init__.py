"""Maps of two sites in bands of query rows, in Triton: what the operators run on NVIDIA GPUs.

A band is some query rows of one sample, or all rows of several, with all the keys that they may attend. Only the
maps of one band exist at a time, in a workspace that is used again for the next:

    lse            log of the softmax's denominator, per row                       once
    probabilities  P = exp(scores - lse), of both models                           every band
    heads          products over the axis of the heads: inner products of maps, mixtures, dL/dS
    gradients      dQ = dX K and dK += dX^T Q, where X are the student's scores

Every number has one owner that adds to it in one order, so results are the same from run to run.

Importing this package does not need Triton; its other modules do.
"""

from importlib.util import find_spec

import torch
from torch import Tensor

from amad.capture.record import AttentionRecord

WIDEST_HEAD = 256
MOST_HEADS = 64
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unsupported(student: AttentionRecord, teacher: AttentionRecord) -> str | None:
    """Why these kernels cannot compare the maps of two records, in words; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if _resampled(student, teacher):
        return "the tokens of student and teacher differ, so the teacher's map must be resampled"
    for name, record in (("student", student), ("teacher", teacher)):
        reason = _unsupported(record)
        if reason is not None:
            return f"the {name}'s record of {record.site} {reason}"
    return None


def _unsupported(record: AttentionRecord) -> str | None:
    if record.probabilities is not None:
        return "holds a map, not query and key"
    added = [record.mask, record.position_bias, record.sinks]
    floats = [record.query, record.key, *(tensor for tensor in added if _is_float(tensor))]
    for tensor in floats:
        if tensor is not None and tensor.dtype not in DTYPES:
            return f"is in {str(tensor.dtype).removeprefix('torch.')}"
    width = record.query.shape[3]
    if width > WIDEST_HEAD:
        return f"has heads of width {width}, over {WIDEST_HEAD}"
    if record.n_heads > MOST_HEADS:
        return f"has {record.n_heads} heads, over {MOST_HEADS}"
    return None


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype != torch.bool


def _resampled(student: AttentionRecord, teacher: AttentionRecord) -> bool:
    axes = (
        (student.n_queries, teacher.n_queries, student.query_layout, teacher.query_layout),
        (student.n_keys, teacher.n_keys, student.key_layout, teacher.key_layout),
    )
    return any(mine != its or (a is not None and b is not None and a != b) for mine, its, a, b in axes)
