"""Rows of the maps of some samples of one record: made in place, and the way back from their gradients."""

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import wraps
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from amad.capture.record import AttentionRecord

TRAINED = ("query", "key", "position_bias", "mask", "sinks", "probabilities")
"""The tensors of a record to which a gradient may flow."""


class Pair(NamedTuple):
    """Two records with no gradient behind them, for a function that makes its own.

    Attributes:
        student: The student's.
        teacher: The teacher's.
        names: Fields of the student's record that want a gradient.
    """

    student: AttentionRecord
    teacher: AttentionRecord
    names: tuple[str, ...]

    def save(self, ctx: Any, *others: Tensor | None) -> None:
        """Keep the pair, and other tensors, for the backward pass; autograd then refuses if a tensor was changed."""
        held = [*vars(self.student).values(), *vars(self.teacher).values()]
        tensors = [value for value in held if isinstance(value, Tensor) and not value.is_inference()]
        ctx.pair = self
        ctx.save_for_backward(*others, *tensors)


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass of hand-made gradients: in full precision, and refused where it would be differentiated.

    Reads the saved tensors first, so that it is refused as well where one of them was changed.
    """
    once = once_differentiable(backward)

    @wraps(backward)
    def checked(ctx: Any, *gradients: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the attention operators have first derivatives only, and create_graph=True asks for second ones. "
                "Leave it out, or compute this loss within operator_backend('reference')."
            )
        assert len(ctx.saved_tensors) > 0
        with torch.autocast(ctx.pair.student.query.device.type, enabled=False):
            return once(ctx, *gradients)

    return checked


def detach_pair(student: AttentionRecord, teacher: AttentionRecord) -> tuple[Pair, tuple[Tensor, ...]]:
    """The pair, and the student's tensors that want a gradient; none where gradients are off."""
    found = {name: getattr(student, name) for name in TRAINED if torch.is_grad_enabled()}
    wanted = {name: tensor for name, tensor in found.items() if tensor is not None and tensor.requires_grad}
    pair = Pair(student.map_alone().detach(), teacher.map_alone().detach(), tuple(wanted))
    return pair, tuple(wanted.values())


class Gradients:
    """Sums of the gradients to the tensors of a record that want one, in the dtype of the computation."""

    def __init__(self, pair: Pair, dtype: torch.dtype) -> None:
        tensors = {name: getattr(pair.student, name) for name in pair.names}
        self._dtypes = [tensor.dtype for tensor in tensors.values()]
        self.sums = {name: tensor.new_zeros(tensor.shape, dtype=dtype) for name, tensor in tensors.items()}
        if "key" in self.sums:
            # Transposed, as the product with a wide result is faster than that with a tall one.
            self.sums["key"] = self.sums["key"].view(self.sums["key"].mT.shape)

    def results(self, weight: Tensor | float = 1.0) -> list[Tensor]:
        """The gradients times a weight, in the order and the dtypes of the tensors; ends the use of these sums."""
        # Times the weight first: it may hold the loss scale that keeps float16 gradients from vanishing.
        found = zip(self.sums.items(), self._dtypes, strict=True)
        return [
            (total.mT if name == "key" else total).mul_(weight).to(dtype) for (name, total), dtype in found
        ]

    def of_samples(self, samples: slice) -> "Gradients":
        """The part of these samples; what is added to it is added to the whole."""
        part = copy(self)
        part.sums = {
            name: total if name == "sinks" or total.shape[0] == 1 else total[samples]
            for name, total in self.sums.items()
        }
        return part


class Rows:
    """Makes rows of the maps of some samples, in place, and takes their gradients back.

    Args:
        record: Of the batch.
        samples: Which of it.
        dtype: Of the computation.
        is_whole: Leave out the sinks and divide given probabilities by their sum, so that rows sum to one.
    """

    def __init__(self, record: AttentionRecord, samples: slice, dtype: torch.dtype, is_whole: bool) -> None:
        self.n_samples = len(range(*samples.indices(record.n_batch)))
        self.record = record.samples(samples)
        self.dtype = dtype
        self.group = record.n_heads // record.n_kv_heads
        # The heads of all samples, one sample after the other, are one axis of the products.
        self.query = self._heads(self.record.query)
        self.key = self._heads(self.record.key).to(dtype)
        self.sinks = (
            None if is_whole or record.sinks is None else record.sinks.detach().to(dtype)[:, None, None]
        )
        self.is_whole = is_whole
        self.is_given = record.probabilities is not None

    def key_range(self, rows: slice) -> tuple[int, int]:
        """The first key that one of these rows may attend by causality and window, and the one after the last."""
        record = self.record
        first, last = 0, record.n_keys
        if not self.is_given:
            if record.causal_offset is not None:
                last = min(last, rows.stop + record.causal_offset)
            if record.window is not None:
                shift = record.n_keys - record.n_queries
                first = max(first, rows.start + shift - record.window + 1)
                last = min(last, rows.stop + shift + record.window - 1)
        first = min(max(first, 0), record.n_keys - 1)
        return first, max(last, first + 1)

    @torch.no_grad()
    def make(self, rows: slice, keys: slice, out: Float[Tensor, "sample head row key"]) -> None:
        """Attention probabilities of these rows; zero where a row may attend nothing."""
        record = self.record
        if record.probabilities is not None:
            out.copy_(record.probabilities[:, :, rows, keys])
            if self.is_whole:
                mass = out.sum(-1, keepdim=True)
                out.div_(torch.where(mass > 0, mass, 1.0))
            return
        self._capped_scores(rows, keys, out)
        if record.softcap is not None:
            out.mul_(record.softcap)
        for added in self._added(rows, keys):
            out.add_(added)
        alive = self._hide(rows, keys, out)
        if self.sinks is not None:
            most = torch.maximum(out.amax(-1, keepdim=True), self.sinks)
            torch.exp(out.sub_(most), out=out)
            out.div_(out.sum(-1, keepdim=True).add_((self.sinks - most).exp_()))
        elif alive is None:
            torch.softmax(out, -1, out=out)
        else:
            torch.softmax(out.masked_fill_(~alive, 0.0), -1, out=out)
            out.mul_(alive)

    @torch.no_grad()
    def back(
        self,
        rows: slice,
        keys: slice,
        probabilities: Float[Tensor, "sample head row key"],
        gradient: Float[Tensor, "sample head row key"],
        wanted: Mapping[str, Tensor],
    ) -> None:
        """Add what follows from the gradient to these rows to the gradients of the tensors; overwrites it.

        Args:
            rows: Which rows.
            keys: Which keys.
            probabilities: What :meth:`make` made.
            gradient: To that.
            wanted: Sums by the name of the tensor, for these samples; the one of ``key`` transposed.
        """
        record = self.record
        given = wanted.get("probabilities")
        if given is not None:
            if self.is_whole:
                assert record.probabilities is not None
                mass = record.probabilities[:, :, rows].to(self.dtype).sum(-1, keepdim=True)
                gradient -= (gradient * probabilities).sum(-1, keepdim=True)
                gradient /= torch.where(mass > 0, mass, 1.0)
            if record.mask is not None:
                # Keys that the other model has no token for are zero whatever their probability was.
                gradient *= record.mask[..., keys]
            given[:, :, rows, keys] += gradient
            return
        sinks = wanted.get("sinks")
        if sinks is not None and self.sinks is not None:
            taken = 1.0 - probabilities.sum(-1)
            dead = probabilities.sum(-1) == 0
            taken = ((gradient * probabilities).sum(-1) * taken).masked_fill_(dead, 0.0)
            sinks -= taken.sum(-1).sum(0)
        torch._softmax_backward_data(gradient, probabilities, -1, self.dtype, grad_input=gradient)
        for name in ("position_bias", "mask"):
            added = wanted.get(name)
            if added is not None:
                part = added[:, :, rows, keys] if added.shape[2] > 1 else added[..., keys]
                part += gradient.sum_to_size(part.shape)
        if record.softcap is not None:
            tanh = torch.empty_like(gradient)
            self._capped_scores(rows, keys, tanh)
            gradient.mul_(tanh.square_().neg_().add_(1.0))
        grouped = self._grouped(gradient.flatten(0, 1))
        query, key = wanted.get("query"), wanted.get("key")
        if query is not None:
            part = query[:, :, rows]
            found = torch.bmm(grouped, self.key[:, keys]).view(self.n_samples, *part.shape[1:])
            part.add_(found.sum_to_size(part.shape), alpha=record.scale)
        if key is not None:
            turned = self._query(rows).transpose(1, 2)
            if key.shape[0] == self.n_samples:
                key.flatten(0, 1)[..., keys].baddbmm_(turned, grouped, alpha=record.scale)
            else:
                found = torch.bmm(turned, grouped).view(self.n_samples, *key.shape[1:3], -1)
                key[..., keys].add_(found.sum(0, keepdim=True), alpha=record.scale)

    def _heads(self, tensor: Float[Tensor, "#sample head token width"]) -> Tensor:
        return tensor.detach().expand(self.n_samples, -1, -1, -1).flatten(0, 1)

    def _capped_scores(self, rows: slice, keys: slice, out: Tensor) -> None:
        """Scaled dot products, or their hyperbolic tangent before the soft cap where there is one."""
        grouped = self._grouped(out.flatten(0, 1))
        key = self.key[:, keys].transpose(1, 2)
        torch.baddbmm(grouped, self._query(rows), key, beta=0, alpha=self.record.scale, out=grouped)
        if self.record.softcap is not None:
            torch.tanh(out.div_(self.record.softcap), out=out)

    def _query(self, rows: slice) -> Tensor:
        """Queries of these rows, those that share a key head behind one another."""
        query = self.query[:, rows].to(self.dtype)
        return query if self.group == 1 else self._grouped(query.contiguous())

    def _grouped(self, heads: Tensor) -> Tensor:
        return heads.view(heads.shape[0] // self.group, self.group * heads.shape[1], heads.shape[2])

    def _added(self, rows: slice, keys: slice) -> Iterable[Tensor]:
        for added in (self.record.position_bias, self.record.mask):
            if added is not None and added.dtype != torch.bool:
                one = added.detach()
                yield (one[:, :, rows] if one.shape[2] > 1 else one)[..., keys].to(self.dtype)

    def _hide(self, rows: slice, keys: slice, out: Tensor) -> Tensor | None:
        """Put -inf where a key may not be attended; returns which rows may attend any, or None if all may."""
        visible = self.record.visible(rows, keys)
        if visible is None or (not visible.is_cuda and bool(visible.all())):
            return None
        out.masked_fill_(~visible, -torch.inf)
        alive = visible.any(-1, keepdim=True)
        return None if not alive.is_cuda and bool(alive.all()) else alive
