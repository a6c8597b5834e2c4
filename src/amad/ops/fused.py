"""A loss made of the operators, and its gradient, in as few sweeps over the maps as possible."""

from collections.abc import Callable
from contextlib import closing
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from amad.capture.record import AttentionRecord
from amad.ops.aligned_kl import aligned_kl, check_alignment
from amad.ops.aligned_kl.chunked import Divergence, KLGradient, kl_sweep
from amad.ops.attention_gram import AttentionGram, attention_gram
from amad.ops.attention_gram.chunked import GramGradient, gram_sweep
from amad.ops.backends import choose_backend
from amad.ops.resampling import common_dtype
from amad.ops.rows import Gradients, Pair, detach_pair, first_order
from amad.ops.sweep import Contribution, Sweep, gradient_sweep

KEEP_BYTES = 32 << 20
"""Maps of one sample that take no more, teacher and student together, are kept from one sweep to the next.

As many samples are taken at a time as this has room for. Larger maps are made again in every sweep.
"""


@runtime_checkable
class Operators(Protocol):
    """The operators on one pair of records."""

    def gram(self) -> AttentionGram:
        """See :func:`amad.ops.attention_gram.attention_gram`."""

    def kl(self, alignment: Float[Tensor, "#batch teacher student"]) -> Float[Tensor, "batch teacher"]:
        """See :func:`amad.ops.aligned_kl.aligned_kl`; one alignment may be given for all samples."""


Loss = Callable[[Operators], Tensor]
"""From the operators on some samples to one number per sample, which no other sample changes."""


def fused_loss(student: AttentionRecord, teacher: AttentionRecord, loss: Loss) -> Float[Tensor, " batch"]:
    """The loss of each sample, with gradients to the student's tensors.

    The same as the loss of the operators themselves. In the ``chunked`` form, the gradient is made at once: the
    parts of it that come from different operators share one sweep over the maps, small maps are kept from one sweep
    to the next, and nothing is left of them when this returns. Tensors beside the records get no gradient; where one
    has to, compute the loss of :class:`PlainOperators`.
    """
    with torch.autocast(student.query.device.type, enabled=False):
        if choose_backend(student, teacher) != "chunked":
            return loss(PlainOperators(student, teacher))
        pair, tensors = detach_pair(student, teacher)
        return _FusedLoss.apply(pair, loss, *tensors)  # type: ignore[no-untyped-call, no-any-return]


class PlainOperators:
    """The operators one by one, as they are: gradients flow to the alignment as well, wherever it comes from."""

    def __init__(self, student: AttentionRecord, teacher: AttentionRecord) -> None:
        self.records = (student, teacher)

    def gram(self) -> AttentionGram:
        """See :class:`Operators`."""
        return attention_gram(*self.records)

    def kl(self, alignment: Float[Tensor, "#batch teacher student"]) -> Float[Tensor, "batch teacher"]:
        """See :class:`Operators`."""
        return aligned_kl(*self.records, alignment.expand(self.records[0].n_batch, -1, -1))


class _Deferred:
    """Values at once; what their gradients add to that of the maps is noted down for one sweep at the end."""

    def __init__(self, pair: Pair, keep_bytes: int) -> None:
        self.pair = pair
        # Where sinks take a part, inner products are of other rows than divergences, and each has its own sweep.
        same_rows = pair.student.is_whole and pair.teacher.is_whole
        self.raw = Sweep(pair.student, pair.teacher, is_whole=False, keep_bytes=keep_bytes)
        self.whole = self.raw if same_rows else Sweep(pair.student, pair.teacher, is_whole=True)
        self.noted: list[tuple[Sweep, Contribution]] = []
        self._gram: AttentionGram | None = None
        # Makes autograd come through the values if anybody wants a gradient.
        self.anchor = torch.zeros((), requires_grad=bool(pair.names))

    def gram(self) -> AttentionGram:
        if self._gram is None:
            with torch.no_grad():
                found = gram_sweep(self.raw)
            self._gram = AttentionGram(*_Products.apply(self, self.anchor, *found))  # type: ignore[no-untyped-call]
        return self._gram

    def kl(self, alignment: Tensor) -> Tensor:
        alignment = alignment.expand(self.pair.student.n_batch, -1, -1)
        check_alignment(self.pair.student, self.pair.teacher, alignment)
        with torch.no_grad():
            found = kl_sweep(self.whole, alignment, alignment.requires_grad and bool(self.pair.names))
        return _Divergences.apply(self, self.anchor, alignment, found)  # type: ignore[no-untyped-call, no-any-return]

    def close(self) -> None:
        self.raw.close()
        self.whole.close()
        # The values' autograd nodes hold this object; what it holds of them would keep all of it for ever.
        self._gram = None
        self.noted.clear()

    def finish(self, gradients: Gradients) -> None:
        """The sweeps for the gradients that were noted."""
        for sweep in {id(sweep): sweep for sweep, _ in self.noted}.values():
            gradient_sweep(sweep, [part for of, part in reversed(self.noted) if of is sweep], gradients)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noted: _Deferred, anchor: Tensor, *gram: Tensor) -> tuple[Tensor, ...]:
        ctx.noted = noted
        ctx.set_materialize_grads(False)
        return tuple(product.clone() for product in gram)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cross: Tensor | None, student: Tensor | None, _: Any) -> tuple[None, ...]:
        sweep = ctx.noted.raw
        ctx.noted.noted.append((sweep, GramGradient(cross, student)))
        return (None,) * 5


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, noted: _Deferred, anchor: Tensor, alignment: Tensor, found: Divergence) -> Tensor:
        ctx.noted, ctx.towards = noted, found.to_alignment
        ctx.save_for_backward(alignment)
        return found.value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        (alignment,) = ctx.saved_tensors
        sweep = ctx.noted.whole
        ctx.noted.noted.append((sweep, KLGradient(sweep, alignment, weights)))
        towards = None if ctx.towards is None else (ctx.towards * weights[..., None]).to(alignment.dtype)
        return None, None, towards, None


class _FusedLoss(torch.autograd.Function):
    """The gradient of the sum over samples, made at once.

    A backward pass that weighs samples, or a second one, makes it again.
    """

    @staticmethod
    def forward(ctx: Any, pair: Pair, loss: Loss, *tensors: Tensor) -> Tensor:
        ctx.loss = loss
        pair.save(ctx)
        values, ctx.gradients = _run(pair, loss, None)
        return values

    @staticmethod
    @first_order
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.gradients = ctx.gradients, None
        if made is not None and bool((weights == weights[0]).all()):
            return None, None, *made.results(weights[0])
        _, gradients = _run(ctx.pair, ctx.loss, weights)
        return None, None, *gradients.results()


def _run(pair: Pair, loss: Loss, weights: Tensor | None) -> tuple[Tensor, Gradients]:
    """The values, and the gradients of their weighted sum, for as many samples at a time as keep their maps."""
    student, teacher, dtype = pair.student, pair.teacher, common_dtype(pair.student, pair.teacher)
    gradients = Gradients(pair, dtype)
    n_map_bytes = (student.n_heads + teacher.n_heads) * student.n_queries * student.n_keys * dtype.itemsize
    n_kept = KEEP_BYTES // max(n_map_bytes, 1)
    n_together = n_kept or student.n_batch
    values = []
    for first in range(0, student.n_batch, n_together):
        some = slice(first, min(first + n_together, student.n_batch))
        group = Pair(student.samples(some), teacher.samples(some), pair.names)
        with closing(_Deferred(group, KEEP_BYTES if n_kept else 0)) as operators:
            with torch.enable_grad():
                value = loss(operators)
                if pair.names and value.requires_grad:
                    weight = torch.ones_like(value) if weights is None else weights[some]
                    torch.autograd.grad(value, operators.anchor, weight, allow_unused=True)
            operators.finish(gradients.of_samples(some))
        values.append(value.detach())
    return torch.cat(values), gradients
