"""Back-end ``probs``: the map that an eager module computes itself, for scores that are not query times key.

While the module runs, calls of softmax and of scaled dot-product attention are watched, and the last one is
kept: the softmax's own output, or the arguments of the fused function. The softmax holds its output for the
backward pass in any case, so this costs hardly any memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from amad.capture.backend import Calls, Evidence, attend, recomputing
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site
from amad.errors import CaptureError

_SOFTMAX = {torch.softmax, Tensor.softmax, functional.softmax, torch.special.softmax}
_PRODUCT = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}


class ProbsCall(NamedTuple):
    """A softmax's output, or the arguments of scaled dot-product attention; and what followed from it."""

    map: Tensor | None
    fused: Mapping[str, Any]
    # The first factor of the product that came next, or the output of the fused function.
    used: Tensor | None = None


class _Watch(TorchFunctionMode):
    """Sees every torch function that runs while it is on."""

    def __init__(self, with_evidence: bool) -> None:
        super().__init__()
        self.last: ProbsCall | None = None
        self.with_evidence = with_evidence

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _SOFTMAX:
            self.last = ProbsCall(output, {})
        elif func is functional.scaled_dot_product_attention:
            self.last = ProbsCall(None, _fused(*args, **kwargs), output if self.with_evidence else None)
        elif self.with_evidence and func in _PRODUCT and self.last is not None and self.last.used is None:
            self.last = self.last._replace(used=args[0])
        return output


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> dict[str, Any]:
    return {
        "query": query,
        "key": key,
        "value": value,
        "mask": attn_mask,
        "is_causal": is_causal,
        "scale": scale,
    }


def attach(
    site: Site, calls: Calls, *, with_evidence: bool = False, with_value: bool = False
) -> Callable[[], None]:
    """See :class:`amad.capture.backend.Backend`."""
    watches: list[_Watch | None] = []

    def start(module: nn.Module, args: tuple[Any, ...]) -> None:
        watch = None if recomputing() else _Watch(with_evidence)
        watches.append(watch)
        if watch is not None:
            watch.__enter__()  # type: ignore[no-untyped-call]

    def finish(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        watch = watches.pop()
        if watch is None:
            return
        watch.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if watch.last is not None:
            calls.append(watch.last)

    handles = (
        site.module.register_forward_pre_hook(start),
        # Also after an exception, or the watch would stay on.
        site.module.register_forward_hook(finish, always_call=True),
    )

    def detach() -> None:
        for handle in handles:
            handle.remove()

    return detach


def read(site: Site, call: ProbsCall) -> AttentionRecord:
    """See :class:`amad.capture.backend.Backend`."""
    if call.map is None:
        return _read_fused(site, call.fused)
    probabilities = call.map
    if probabilities.ndim == 3 and probabilities.shape[0] % site.n_heads == 0:
        probabilities = probabilities.reshape(-1, site.n_heads, *probabilities.shape[1:])
    if probabilities.ndim != 4 or probabilities.shape[1] != site.n_heads:
        raise CaptureError(
            f"{site.key} ({site.name}): its softmax gives {tuple(call.map.shape)}, which is no map with the "
            f"axes (batch, {site.n_heads} heads, query, key). Leave this site out."
        )
    n_batch, n_heads, n_queries, n_keys = probabilities.shape
    return AttentionRecord(
        site=site.key,
        query=probabilities.new_empty(n_batch, n_heads, n_queries, 0),
        key=probabilities.new_empty(n_batch, n_heads, n_keys, 0),
        scale=1.0,
        probabilities=probabilities,
    )


def _read_fused(site: Site, fused: Mapping[str, Any]) -> AttentionRecord:
    query, key, mask = fused["query"], fused["key"], fused["mask"]
    if query.ndim != 4:
        raise CaptureError(
            f"{site.key} ({site.name}): a query must have the axes (batch, head, query, width), but is "
            f"{tuple(query.shape)}. Leave this site out."
        )
    if mask is not None:
        mask = mask[(None,) * (4 - mask.ndim)]
    return AttentionRecord(
        site=site.key,
        query=query,
        key=key,
        scale=query.shape[-1] ** -0.5 if fused["scale"] is None else float(fused["scale"]),
        mask=mask,
        causal_offset=0 if fused["is_causal"] else None,
        value=fused["value"],
    )


def evidence(site: Site, call: ProbsCall, record: AttentionRecord) -> Evidence | None:
    """The first factor of the product after the softmax must be the map; fused attention has its output."""
    if call.used is None:
        return None
    if call.map is None:
        recomputed = attend(record, call.fused["value"])
        return Evidence(call.used.transpose(1, 2).reshape(recomputed.shape), recomputed)
    if record.probabilities is None or call.used.numel() != record.probabilities.numel():
        return None
    produced = call.used.reshape(record.map_shape).transpose(1, 2)
    return Evidence(produced, record.probabilities.transpose(1, 2).float())
