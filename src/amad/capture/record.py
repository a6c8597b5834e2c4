"""What one attention site did in one forward pass, without its map."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from amad.axes import SiteKey

HIDDEN = -5000.0
"""A float mask hides keys at or below: models mask with -10,000, -1e9 or the smallest number of their dtype."""


class TokenLayout(NamedTuple):
    """How the tokens of an axis lie: ``before`` single ones, a grid of patches row by row, ``after`` more."""

    before: int
    height: int
    width: int
    after: int = 0

    @property
    def n_tokens(self) -> int:
        """Length of the axis."""
        return self.before + self.height * self.width + self.after


@dataclass(frozen=True)
class AttentionRecord:
    """Query, key and everything else that the map of one site follows from; never the map itself.

    The map of query row q is

        softmax_k( cap(scale <query_q, key_k>) + position_bias_qk + mask_qk )    over the visible keys k

    with cap(x) = softcap tanh(x / softcap) where a soft cap is set, and with one more exponential per head,
    exp(sink), in the denominator where sinks are set. Positions are rotated into query and key before they
    are recorded. Maps are those before dropout.

    Gradients flow through query, key and position bias of a student's record; a teacher's is detached.

    Attributes:
        site: The stack and the layer.
        query: One row per query head. A batch axis of 1 is broadcast against the key's.
        key: ``kv_head`` divides ``head``; consecutive query heads share a key head.
        scale: Multiplies the dot products.
        mask: True where a key may be attended, or a float that is added (masked: below half of the dtype's
            smallest number), or None.
        position_bias: Added to the scaled scores, per head.
        causal_offset: Key k is visible to query q only if k <= q + offset. None: not causal.
        window: Key k is visible to query q only if |k - q - (n_keys - n_queries)| < window. None: no window.
        segments: Segment numbers of packed queries and keys; only equal ones see each other.
        softcap: Gemma-2's cap of the scores.
        sinks: GPT-OSS's extra logit per head, which takes probability and has no key.
        query_keep: True for the rows of real tokens, False for padding; None: all are real.
        query_layout: Where the patches lie on the query axis, if there are any.
        key_layout: The same for the key axis.
        probabilities: The map itself, for the few models whose scores do not follow from query and key
            (back-end ``probs``); query and key are then empty in width.
        value: What the map weighs; where it was asked for and the site shows it.
        hidden: Hidden states that the layer of this site gave, one per query; where they were asked for.
        mixing: The part of the output projection's weight that each head has, so that the site adds
            sum_h map_h value_h mixing_h to the hidden states; where it was asked for and could be found.
    """

    site: SiteKey
    query: Float[Tensor, "#batch head query width"]
    key: Float[Tensor, "#batch kv_head key width"]
    scale: float
    mask: Shaped[Tensor, "#batch #head #query key"] | None = None
    position_bias: Float[Tensor, "#batch #head #query key"] | None = None
    causal_offset: int | None = None
    window: int | None = None
    segments: tuple[Int[Tensor, "#batch query"], Int[Tensor, "#batch key"]] | None = None
    softcap: float | None = None
    sinks: Float[Tensor, " head"] | None = None
    query_keep: Bool[Tensor, "#batch query"] | None = None
    query_layout: TokenLayout | None = None
    key_layout: TokenLayout | None = None
    probabilities: Float[Tensor, "batch head query key"] | None = None
    value: Float[Tensor, "#batch kv_head key value_width"] | None = None
    hidden: Float[Tensor, "#batch query feature"] | None = None
    mixing: Float[Tensor, "head value_width feature"] | None = None

    @property
    def n_batch(self) -> int:
        """Samples."""
        sizes = [self.query.shape[0], self.key.shape[0]]
        if self.probabilities is not None:
            sizes.append(self.probabilities.shape[0])
        return max(sizes)

    @property
    def n_heads(self) -> int:
        """Query heads."""
        return self.query.shape[1]

    @property
    def n_kv_heads(self) -> int:
        """Key heads."""
        return self.key.shape[1]

    @property
    def n_queries(self) -> int:
        """Rows of the map."""
        return self.query.shape[2]

    @property
    def n_keys(self) -> int:
        """Columns of the map."""
        return self.key.shape[2]

    @property
    def is_whole(self) -> bool:
        """Rows of the map that are not zero sum to one: nothing goes to a sink."""
        return self.sinks is None and self.probabilities is None

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        """(batch, head, query, key) of the map that is not built."""
        return self.n_batch, self.n_heads, self.n_queries, self.n_keys

    def detach(self) -> "AttentionRecord":
        """The same record with no gradient behind it."""
        fields: dict[str, Any] = {
            name: value.detach() for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **fields)

    def map_alone(self) -> "AttentionRecord":
        """The same record without what its map does not follow from."""
        return replace(self, value=None, hidden=None, mixing=None)

    def row_slices(self, n_rows: int) -> Iterator[slice]:
        """Consecutive slices of at most ``n_rows`` query rows that cover the map."""
        for start in range(0, self.n_queries, n_rows):
            yield slice(start, min(start + n_rows, self.n_queries))

    def samples(self, samples: slice) -> "AttentionRecord":
        """The record of these samples only; tensors with one sample for all stay as they are."""

        def some(tensor: Tensor) -> Tensor:
            return tensor if tensor.shape[0] == 1 and self.n_batch > 1 else tensor[samples]

        fields: dict[str, Any] = {
            name: some(value)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in ("sinks", "mixing")
        }
        if self.segments is not None:
            fields["segments"] = (some(self.segments[0]), some(self.segments[1]))
        return replace(self, **fields)

    def visible(
        self, rows: slice = slice(None), keys: slice = slice(None)
    ) -> Bool[Tensor, "#batch #head row key"] | None:
        """Which of these keys each of these query rows may attend; None if it may attend them all."""
        visible: Tensor | None = None
        if self.probabilities is not None:
            return self.probabilities[:, :, rows, keys] > 0
        if self.mask is not None:
            mask = (self.mask[:, :, rows] if self.mask.shape[2] > 1 else self.mask)[..., keys]
            visible = mask if mask.dtype == torch.bool else mask > HIDDEN
        if self.causal_offset is not None or self.window is not None:
            device = self.query.device
            query = torch.arange(self.n_queries, device=device)[rows, None]
            key = torch.arange(self.n_keys, device=device)[None, keys]
            if self.causal_offset is not None:
                visible = _both(visible, (key <= query + self.causal_offset)[None, None])
            if self.window is not None:
                distance = (key - query - (self.n_keys - self.n_queries)).abs()
                visible = _both(visible, (distance < self.window)[None, None])
        if self.segments is not None:
            query_segment, key_segment = self.segments
            same = query_segment[:, rows, None] == key_segment[:, None, keys]
            visible = _both(visible, same[:, None])
        if visible is not None and visible.shape[2] == 1:
            visible = visible.expand(-1, -1, len(range(*rows.indices(self.n_queries))), -1)
        return visible

    def logits(
        self, rows: slice = slice(None), dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch head row key"]:
        """Scores of these rows before the softmax; -inf where a key may not be attended.

        Computed in ``dtype`` whatever the surrounding autocast says.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            if self.probabilities is not None:
                return self.probabilities[:, :, rows].to(dtype).log()
            query = self.query[:, :, rows].to(dtype) * self.scale
            key = self.key.to(dtype)
            group = self.n_heads // self.n_kv_heads
            if group > 1:
                query = query.reshape(query.shape[0], self.n_kv_heads, group, *query.shape[2:])
                scores = torch.matmul(query, key.unsqueeze(2).transpose(-1, -2)).flatten(1, 2)
            else:
                scores = torch.matmul(query, key.transpose(-1, -2))
            if self.softcap is not None:
                scores = self.softcap * torch.tanh(scores / self.softcap)
            if self.position_bias is not None:
                bias = self.position_bias
                scores = scores + (bias[:, :, rows] if bias.shape[2] > 1 else bias).to(dtype)
            if self.mask is not None and self.mask.dtype != torch.bool:
                mask = self.mask[:, :, rows] if self.mask.shape[2] > 1 else self.mask
                scores = scores + mask.to(dtype)
            visible = self.visible(rows)
            if visible is not None:
                # In place: nothing above keeps these numbers for its backward.
                scores = scores.masked_fill_(~visible, -math.inf)
            return scores

    def rows(
        self, rows: slice = slice(None), dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "batch head row key"]:
        """Attention probabilities of these query rows.

        A row with no visible key is zero, with zero gradient; every other row sums to one, or to less by what
        a sink takes. Rows of padded queries are computed like any other: see :meth:`keep`.
        """
        if self.probabilities is not None:
            return self.probabilities[:, :, rows].to(dtype)
        scores = self.logits(rows, dtype)
        visible = self.visible(rows)
        if self.sinks is not None:
            sinks = self.sinks.to(dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
            return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1]
        if visible is None:
            return scores.softmax(-1)
        alive = visible.any(-1, keepdim=True)
        # Dead rows are rare, and two passes over the map dear. Asking a GPU would stop it, so there they are made.
        if not scores.is_cuda and bool(alive.all()):
            return scores.softmax(-1)
        return torch.where(alive, scores, torch.zeros_like(scores)).softmax(-1) * alive

    def keep(self, rows: slice = slice(None)) -> Bool[Tensor, "batch row"]:
        """True for rows that count: a real token that may attend at least one key."""
        n_rows = len(range(*rows.indices(self.n_queries)))
        keep = torch.ones(self.n_batch, n_rows, dtype=torch.bool, device=self.query.device)
        if self.query_keep is not None:
            keep = keep & self.query_keep[:, rows]
        visible = self.visible(rows)
        if visible is not None:
            keep = keep & visible.any(-1).any(1)
        return keep


def _both(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first & second
