"""What every back-end offers, and what they share."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from amad.capture.record import AttentionRecord
from amad.capture.sites import Site

Calls = list[Any]
"""What one site did, one entry per call, in the back-end's own form: references, nothing computed."""


class Evidence(NamedTuple):
    """What a site produced, in its own dtype, and the same recomputed from its record; axes (batch, query, ...)."""

    produced: Tensor
    recomputed: Tensor


class Backend(Protocol):
    """One way to record a site. A back-end is a module with these functions."""

    def attach(
        self, site: Site, calls: Calls, *, with_evidence: bool = False, with_value: bool = False
    ) -> Callable[[], None]:
        """Append to ``calls`` whenever the site runs, until the function that is returned is called.

        A recomputation by gradient checkpointing is not a call. With evidence, what :meth:`evidence` needs is
        kept too; with value, what the record's value vectors are read from, where the site shows them.
        """

    def read(self, site: Site, call: Any) -> AttentionRecord:
        """The record of one call; tokens and layouts are not yet in it."""

    def evidence(self, site: Site, call: Any, record: AttentionRecord) -> Evidence | None:
        """Both sides of the self-check; None if the site shows nothing to compare with."""


def recomputing() -> bool:
    """True while autograd runs a graph: a forward pass then is one that gradient checkpointing repeats."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def attend(
    record: AttentionRecord, value: Float[Tensor, "#batch kv_head key value_width"], n_rows: int = 256
) -> Float[Tensor, "batch query head value_width"]:
    """Recomputed probabilities times values, in float32, a tile of rows at a time."""
    value = value.float().repeat_interleave(record.n_heads // value.shape[1], dim=1)
    with torch.autocast(value.device.type, enabled=False):
        tiles = [torch.matmul(record.rows(rows), value) for rows in record.row_slices(n_rows)]
    return torch.cat(tiles, dim=2).transpose(1, 2)
