"""Squeezing-Heads Distillation: the teacher's heads are merged until there are as many as the student's."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError
from amad.losses.aligned import AlignedAttention, constant_alignment
from amad.losses.head_mean import distance_of_heads
from amad.losses.pairs import PairTerm
from amad.ops.attention_gram import AttentionGram
from amad.ops.fused import PlainOperators
from amad.ops.maps import BLOCK_NUMBERS
from amad.ops.resampling import common_dtype

Groups = list[list[int]]


class SqueezedHeads(AlignedAttention):
    """Neighbouring teacher heads are merged so that what they add to the hidden states changes least.

    Until there are as many as the student has, neighbours p and q become one head, per sample:

        A = alpha A_p + (1 - alpha) A_q,    X = X_p + X_q,    X_h = V_h W_h
        alpha = < D X, D X_p > / | D X |^2,    D = A_p - A_q,    clamped to [0, 1]

    where W_h is the part of the output projection that head h has: this alpha minimises | A X - A_p X_p - A_q X_q |.
    Then student head k learns from merged head k,

        sum_{k < min(Ht, Hs)} KL( A_k || S_k )    in nats, the mean over the rows that count.

    Bing et al. 2025, arXiv:2502.07436. In each round only as many pairs are merged as there are heads too many. Their
    temperature of the maps is left out, as nothing else here has one. With no more teacher heads than student heads
    this is ``one_to_one``. The value depends on the order of the heads of both models, and is a sum over min(Ht, Hs)
    heads. The weights need the teacher's values and output projection; a few rows of its maps are made at a time.

    Each teacher head is part of one merged head only, and the divergence is linear in the teacher's map but for a
    constant. So this is the sum over teacher heads of their share times KL( T_i || S_k(i) ), less a constant, and runs
    on the fused operators.
    """

    needs = frozenset({"records", "value", "mixing"})
    variants: ClassVar[tuple[str, ...]] = ("kl",)

    def weigh_heads(self, importance: Mapping[SiteKey, Float[Tensor, " head"]]) -> None:
        """Refused: merged heads have weights of their own.

        Raises:
            RecipeError: always.
        """
        PairTerm.weigh_heads(self, importance)

    def align(
        self,
        pair: SitePair,
        student: AttentionRecord,
        teacher: AttentionRecord,
        gram: Callable[[], AttentionGram],
    ) -> Float[Tensor, "#sample teacher student"]:
        """One where teacher head i is part of merged head j."""
        return _membership(student, teacher)

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        membership = _membership(student, teacher)
        shares = squeeze(teacher, student.n_heads).to(membership.dtype)
        # Row i: the shares of all heads in the merged head that i is part of; its own is on the diagonal.
        mixture = torch.matmul(membership[..., : shares.shape[1]], shares)
        own = mixture.diagonal(dim1=-2, dim2=-1)
        values = PlainOperators(student, teacher).kl(membership)
        return (own * (values - distance_of_heads(student, teacher, mixture))).sum(-1)


def _membership(student: AttentionRecord, teacher: AttentionRecord) -> Float[Tensor, "1 teacher student"]:
    membership = constant_alignment(student, teacher)
    for merged, heads in enumerate(rounds_of_groups(teacher.n_heads, student.n_heads)[-1]):
        membership[:, heads, merged] = 1.0
    return membership


def rounds_of_groups(n_teachers: int, n_students: int) -> list[Groups]:
    """Which teacher heads are together after each round: each alone at first, at most ``n_students`` groups at last."""
    rounds: list[Groups] = [[[head] for head in range(n_teachers)]]
    while len(rounds[-1]) > n_students:
        before = rounds[-1]
        n_merged = min(len(before) // 2, len(before) - n_students)
        joined = [before[2 * pair] + before[2 * pair + 1] for pair in range(n_merged)]
        rounds.append(joined + before[2 * n_merged :])
    return rounds


@torch.no_grad()
def squeeze(teacher: AttentionRecord, n_students: int) -> Float[Tensor, "batch merged teacher"]:
    """The share of each teacher head in each merged head; the shares in a merged head sum to one.

    Raises:
        CaptureError: if the record has no values or no output projection.
    """
    value = teacher.value
    if value is None or teacher.mixing is None:
        raise CaptureError(
            f"squeezing heads needs the value vectors and the output projection of {teacher.site} of the teacher, and "
            "its module does not show both. Leave its stack out of objective.attention.stacks."
        )
    rounds = rounds_of_groups(teacher.n_heads, n_students)
    dtype = common_dtype(teacher, teacher)
    shares = torch.eye(teacher.n_heads, dtype=dtype, device=value.device).expand(teacher.n_batch, -1, -1)
    for before, after in pairwise(rounds):
        n_merged = len(before) - len(after)
        alpha = _alphas(teacher, shares, before[: 2 * n_merged])[..., None]
        first, second = shares[:, : 2 * n_merged : 2], shares[:, 1 : 2 * n_merged : 2]
        shares = torch.cat([alpha * first + (1 - alpha) * second, shares[:, 2 * n_merged :]], 1)
    return shares


def _alphas(
    teacher: AttentionRecord, shares: Float[Tensor, "batch group teacher"], groups: Groups
) -> Float[Tensor, "batch pair"]:
    """alpha of the neighbours among these groups, from sums over the rows of the teacher that count."""
    assert teacher.value is not None
    assert teacher.mixing is not None
    dtype = shares.dtype
    values = teacher.value.to(dtype).repeat_interleave(teacher.n_heads // teacher.value.shape[1], 1)
    mixing = teacher.mixing.to(dtype)
    per_row = teacher.n_batch * max(teacher.n_heads * teacher.n_keys, 4 * mixing.shape[2])
    sums = values.new_zeros(2, teacher.n_batch, len(groups) // 2)
    for rows in teacher.row_slices(max(BLOCK_NUMBERS // per_row, 1)):
        maps = teacher.rows(rows, dtype).masked_fill(~teacher.keep(rows)[:, None, :, None], 0.0)
        for pair, (first, second) in enumerate(zip(groups[::2], groups[1::2], strict=True)):
            weights = shares[:, 2 * pair] - shares[:, 2 * pair + 1]
            difference = torch.einsum("bh,bhqk->bqk", weights, maps)[:, None]
            one, other = (
                torch.einsum("bhqw,hwf->bqf", torch.matmul(difference, values[:, heads]), mixing[heads])
                for heads in (first, second)
            )
            both = one + other
            sums[0, :, pair] += (both * one).sum((-1, -2))
            sums[1, :, pair] += both.square().sum((-1, -2))
    # Where both maps add the same to the hidden states, so does every mixture of them.
    return torch.where(sums[1] > 0, sums[0] / sums[1], 0.5).clamp(0, 1)
