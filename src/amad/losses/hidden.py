"""Distillation of hidden states."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from amad.axes import SiteKey, SitePair
from amad.capture.record import AttentionRecord
from amad.errors import CaptureError, ShapeError
from amad.losses.pairs import PairMatrices, PairTerm, check_choice, find_record
from amad.ops.resampling import common_dtype

HiddenLoss = Literal["mse", "cosine"]


class HiddenStates(PairTerm):
    """Hidden states of the student's layers, projected, compared with those of the teacher's.

    Per sample and pair of sites, with the hidden states h that the layers of the two sites give at query q, of d_S and
    d_T numbers, and a trained W of d_T x d_S for each pair:

    - ``mse``: mean_q | W h^S_q - h^T_q |^2 / d_T; TinyBERT (Jiao et al. 2020, arXiv:1909.10351), equation 8. There one
      W serves all layers.
    - ``cosine``: mean_q ( 1 - cos(W h^S_q, h^T_q) ), between 0 and 2; half of what PKD (Sun et al. 2019,
      arXiv:1908.09355) takes of the states of the first token, without W.

    The mean is over queries that count in both models. The term is the sum over samples of the mean over pairs of
    weight times loss. ``mse`` grows with the square of the teacher's hidden states and has no upper bound. W starts as
    the identity, with zeros where it is not square. It is saved with a checkpoint, not in the student.

    Call :meth:`prepare` with records of one batch before an optimizer is made.

    Args:
        pairs: The sites whose layers are compared; see :class:`amad.losses.pairs.PairTerm`.
        loss: ``mse`` or ``cosine``.

    Raises:
        RecipeError: if the loss is unknown, or as :class:`amad.losses.pairs.PairTerm`.
    """

    needs = frozenset({"records", "hidden"})

    def __init__(self, pairs: Sequence[SitePair], *, loss: HiddenLoss = "mse") -> None:
        super().__init__(pairs)
        check_choice("loss", loss, get_args(HiddenLoss))
        self.loss: HiddenLoss = loss
        self.projections = PairMatrices(pairs)

    @property
    def is_trained(self) -> bool:
        """It is."""
        return True

    def prepare(
        self,
        student: Mapping[SiteKey, AttentionRecord],
        teacher: Mapping[SiteKey, AttentionRecord] | None = None,
    ) -> None:
        """Make the projections that are missing, for hidden states of this width.

        Raises:
            CaptureError: if a site of a pair, or its hidden states, were not recorded.
        """
        for pair in self.pairs:
            if pair.weight:
                mine = _hidden(find_record(student, pair.student, "student"), "student")
                its = _hidden(find_record(teacher or {}, pair.teacher, "teacher"), "teacher")
                self.projections.make(pair, torch.eye(its.shape[-1], mine.shape[-1], device=mine.device))

    def _loss(
        self, pair: SitePair, student: AttentionRecord, teacher: AttentionRecord
    ) -> Float[Tensor, " batch"]:
        mine, aim = _hidden(student, "student"), _hidden(teacher, "teacher").detach()
        grids = (student.query_layout, teacher.query_layout)
        if mine.shape[1] != aim.shape[1] or (None not in grids and grids[0] != grids[1]):
            told = ["" if grid is None else f" in a grid of {grid.height} x {grid.width}" for grid in grids]
            raise ShapeError(
                f"hidden states are compared token by token, but {pair.student} has {mine.shape[1]}{told[0]} and "
                f"{pair.teacher} of the teacher has {aim.shape[1]}{told[1]}. Give both models the same tokens, or "
                "leave the pair out."
            )
        dtype = common_dtype(student, teacher)
        aim = aim.to(dtype)
        projected = functional.linear(mine.to(dtype), self.projections.of(pair).to(dtype))
        if self.loss == "mse":
            distance = (projected - aim).square().mean(-1)
        else:
            distance = 1 - functional.cosine_similarity(projected, aim, dim=-1)
        keep = student.keep() & teacher.keep()
        return distance.masked_fill(~keep, 0.0).sum(1) / keep.sum(1).clamp(min=1)


def _hidden(record: AttentionRecord, who: str) -> Tensor:
    if record.hidden is None:
        raise CaptureError(
            f"{record.site} of the {who} has no hidden states with one per query: they are those of the layer that it "
            "lies in. Leave its stack out of objective.hidden.stacks."
        )
    return record.hidden
