"""Relations among queries, among keys and among values: MiniLMv2."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from amad.axes import SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, RecipeError
from amad.losses.pairs import PairTerm
from amad.ops.fused import Operators, fused_loss
from amad.ops.resampling import common_dtype

KINDS = ("query", "key", "value")

_ROWS = 256


class Relations(PairTerm):
    """Scaled products of query with query, key with key and value with value, compared in relation heads.

    Per sample and pair of sites. The vectors A of all heads, side by side, are cut anew into R heads of d_R numbers:

        L = 1/3 sum_{A in Q, K, V} sum_{r < R} KL( rel(A^T_r) || rel(A^S_r) ),    rel(A) = softmax( A A' / sqrt(d_R) )

    in nats, the mean over the rows that count in both models. MiniLMv2 (Wang et al. 2021, arXiv:2012.15828), section
    3.1, which divides by R as well; it compares one layer of each model, which an explicit pairing says. Any numbers of
    heads will do, if R divides all widths. Tokens that are padding or that no query may attend have no part in it.
    Vectors are taken as attention takes them, so with their positions rotated in. Causality is no part of relations
    here; MiniLMv2 has encoders alone.

    A relation is an attention map of A with itself, so this is ``one_to_one`` of such maps and runs on the fused
    operators.

    Args:
        pairs: The sites to compare; see :class:`amad.losses.pairs.PairTerm`.
        relation_heads: R; as many as the teacher has heads when None.

    Raises:
        RecipeError: if R is below one, or as :class:`amad.losses.pairs.PairTerm`.
    """

    needs = frozenset({"records", "value"})

    def __init__(self, pairs: Sequence[SitePair], *, relation_heads: int | None = None) -> None:
        super().__init__(pairs)
        if relation_heads is not None and relation_heads < 1:
            raise RecipeError(f"relation_heads = {relation_heads}: there must be one at least.")
        self.relation_heads = relation_heads

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        n_relations = self.relation_heads or teacher.n_heads
        dtype, device = common_dtype(student, teacher), student.query.device
        same = torch.eye(n_relations, dtype=dtype, device=device)[None]

        def one_to_one(operators: Operators) -> Tensor:
            return operators.kl(same).sum(-1)

        total = torch.zeros(student.n_batch, dtype=dtype, device=device)
        for kind in KINDS:
            mine = relation_record(student, kind, n_relations, "student")
            its = relation_record(teacher, kind, n_relations, "teacher")
            total = total + fused_loss(mine, its, one_to_one) / len(KINDS)
        return total


def relation_record(record: AttentionRecord, kind: str, n_relations: int, who: str) -> AttentionRecord:
    """The record whose maps are the relations of one kind.

    Args:
        record: Of the site.
        kind: ``query``, ``key`` or ``value``.
        n_relations: R.
        who: Whose record it is, for errors.

    Raises:
        CaptureError: if these vectors were not recorded.
        RecipeError: if R does not divide their width.
    """
    vectors: Tensor | None = getattr(record, kind)
    if vectors is None or vectors.shape[-1] == 0:
        raise CaptureError(
            f"relations need the {kind} vectors of {record.site} of the {who}, which its module does not show. Leave "
            "its stack out of objective.attention.stacks."
        )
    # A tensor may have one sample for all.
    joined = vectors.transpose(1, 2).flatten(2).expand(record.n_batch, -1, -1)
    n_batch, n_tokens, width = joined.shape
    if width % n_relations:
        raise RecipeError(
            f"{n_relations} relation heads do not divide the {width} numbers of a {kind} of {record.site} of "
            f"the {who}. Choose objective.attention.relation_heads that divides the widths of both models."
        )
    heads = joined.reshape(n_batch, n_tokens, n_relations, -1).transpose(1, 2)
    if kind == "query":
        keep, layout = record.keep(), record.query_layout
    else:
        keep, layout = attended_keys(record), record.key_layout
    return AttentionRecord(
        site=record.site,
        query=heads,
        key=heads,
        scale=heads.shape[-1] ** -0.5,
        mask=keep[:, None, None, :],
        query_keep=keep,
        query_layout=layout,
        key_layout=layout,
    )


def attended_keys(record: AttentionRecord) -> Bool[Tensor, "batch key"]:
    """True for the keys that at least one query row that counts may attend."""
    keep = torch.zeros(record.n_batch, record.n_keys, dtype=torch.bool, device=record.query.device)
    for rows in record.row_slices(_ROWS):
        counted = record.keep(rows)[:, None, :, None]
        visible = record.visible(rows)
        keep = keep | (counted if visible is None else counted & visible).any(1).any(1)
    return keep
