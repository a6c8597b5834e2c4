"""Back-end ``interface``: modules that dispatch through the attention interface of transformers.

The functions registered there are registered again under the same keys, inside a wrapper that passes
everything through. A new key would not do: masks are built by key, kernels are looked up by it, and some
models compare it with "sdpa". The eager function is not registered but handed to ``get_interface`` as a
default, so that is wrapped as well.

The wrapper keeps references and computes nothing: an operation there that saves tensors for the backward pass
would break gradient checkpointing, which counts them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers.modeling_utils import AttentionInterface

from amad.capture.backend import Calls, Evidence, attend, recomputing
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site
from amad.errors import CaptureError

_SINKS = "_amad_sinks"
_VALUED = "_amad_valued"
_WITNESSES = "_amad_witnesses"
_BASE = "_amad_base"
_GATE = "_amad_gate"


class InterfaceCall(NamedTuple):
    """The arguments of one call of an attention function that its map follows from."""

    implementation: str
    query: Tensor
    key: Tensor
    mask: Any
    position_bias: Tensor | None
    scale: float | None
    is_causal: bool | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    cu_seqlens_query: Tensor | None
    cu_seqlens_key: Tensor | None
    position_ids: Tensor | None
    value: Tensor | None = None
    output: Tensor | None = None


def attach(
    site: Site, calls: Calls, *, with_evidence: bool = False, with_value: bool = False
) -> Callable[[], None]:
    """See :class:`amad.capture.backend.Backend`."""
    install()
    # A list of lists: torch.compile does not trace a tuple of lists.
    slot = _WITNESSES if with_evidence else _VALUED if with_value else _SINKS
    setattr(site.module, slot, [*getattr(site.module, slot, ()), calls])

    def detach() -> None:
        left = [sink for sink in getattr(site.module, slot) if sink is not calls]
        if left:
            setattr(site.module, slot, left)
        else:
            delattr(site.module, slot)

    return detach


def attach_gate(module: Any, gate: Tensor) -> Callable[[], None]:
    """Multiply each head's output, (batch, query, head, width), by its gate until the returned function is called.

    A gate is an operation in the graph, so gradient checkpointing must be off while there is one.
    """
    install()
    before = getattr(module, _GATE, None)
    setattr(module, _GATE, gate)

    def detach() -> None:
        if before is None:
            delattr(module, _GATE)
        else:
            setattr(module, _GATE, before)

    return detach


def gate_rows(gate: Tensor, heads: Tensor) -> Tensor:
    """The gate of each row of a site's batch, where a sample has several, one after the other: windows, as in Swin."""
    gate = gate.to(heads.dtype)
    return gate if len(gate) == 1 else gate.repeat_interleave(len(heads) // len(gate), 0)


def install() -> None:
    """Wrap the registered attention functions, once. Modules without a sink pass through."""
    for implementation, function in list(AttentionInterface._global_mapping.items()):
        if not implementation.startswith("paged") and not hasattr(function, _BASE):
            AttentionInterface.register(implementation, _passing_through(function, implementation))
    if not hasattr(AttentionInterface.get_interface, _BASE):
        AttentionInterface.get_interface = _getting_wrapped(AttentionInterface.get_interface)


def _passing_through(function: Callable[..., Any], implementation: str) -> Callable[..., Any]:
    # The same names as in transformers, which some models pass by keyword.
    def attention(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return _call(function, implementation, module, query, key, value, attention_mask, *args, **kwargs)

    setattr(attention, _BASE, function)
    return attention


def _getting_wrapped(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    def get(self: Any, attn_implementation: Any, default: Any) -> Any:
        function = get_interface(self, attn_implementation, default)
        if hasattr(function, _BASE):
            return function
        # The eager default, or a function that one model registered for itself.
        return functools.partial(_call, function, attn_implementation or "eager")

    setattr(get, _BASE, get_interface)
    return get


def _call(
    function: Callable[..., Any],
    implementation: str,
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    result = function(module, query, key, value, attention_mask, *args, **kwargs)
    gate = getattr(module, _GATE, None)
    if gate is not None:
        result = (result[0] * gate_rows(gate, result[0])[:, None, :, None], *result[1:])
    sinks = getattr(module, _SINKS, None)
    valued = getattr(module, _VALUED, None)
    witnesses = getattr(module, _WITNESSES, None)
    if (sinks or valued or witnesses) and not recomputing():
        call = InterfaceCall(
            implementation,
            query,
            key,
            attention_mask,
            kwargs.get("position_bias"),
            kwargs.get("scaling"),
            kwargs.get("is_causal"),
            kwargs.get("sliding_window"),
            kwargs.get("softcap"),
            kwargs.get("s_aux"),
            kwargs.get("cu_seq_lens_q"),
            kwargs.get("cu_seq_lens_k"),
            kwargs.get("position_ids"),
        )
        for sink in sinks or ():
            sink.append(call)
        for sink in valued or ():
            sink.append(call._replace(value=value))
        for witness in witnesses or ():
            witness.append(call._replace(value=value, output=result[0]))
    return result


@dataclass
class _Visibility:
    """The part of a record that says which keys a query sees."""

    mask: Any = None
    causal_offset: int | None = None
    window: int | None = None
    segments: tuple[Tensor, Tensor] | None = None
    n_keys: int | None = None


def read(site: Site, call: InterfaceCall) -> AttentionRecord:
    """See :class:`amad.capture.backend.Backend`."""
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    causal = call.is_causal if call.is_causal is not None else getattr(site.module, "is_causal", True)
    if isinstance(call.mask, BlockMask) or "flex" in call.implementation:
        seen = _flex(call)
    elif "flash" in call.implementation:
        seen = _flash(call, bool(causal))
    elif call.implementation == "eager":
        # The eager functions know of causality and windows only through the mask.
        seen = _Visibility(mask=call.mask)
    else:
        seen = _Visibility(mask=call.mask)
        if causal and call.mask is None and n_queries > 1:
            # Aligned at the upper left: the empty end of a static cache is not reached.
            seen.causal_offset, seen.n_keys = 0, min(n_queries, n_keys)
    n_keys = seen.n_keys or n_keys
    bias = call.position_bias
    return AttentionRecord(
        site=site.key,
        query=call.query,
        key=call.key[:, :, :n_keys],
        scale=call.query.shape[-1] ** -0.5 if call.scale is None else float(call.scale),
        mask=None if seen.mask is None else _four_axes(site, seen.mask)[..., :n_keys],
        position_bias=None if bias is None else bias[..., :n_keys],
        causal_offset=seen.causal_offset,
        window=seen.window,
        segments=seen.segments,
        softcap=call.softcap,
        sinks=_sinks(site, call),
        value=None if call.value is None else call.value[:, :, :n_keys],
    )


def evidence(site: Site, call: InterfaceCall, record: AttentionRecord) -> Evidence | None:
    """See :class:`amad.capture.backend.Backend`."""
    if call.value is None or call.output is None:
        return None
    recomputed = attend(record, call.value[:, :, : record.n_keys])
    return Evidence(call.output.reshape(recomputed.shape), recomputed)


def _four_axes(site: Site, mask: Any) -> Tensor:
    if (
        not isinstance(mask, Tensor)
        or mask.ndim != 4
        or not (mask.dtype == torch.bool or mask.is_floating_point())
    ):
        form = f"{mask.dtype} of {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise CaptureError(
            f"{site.key} ({site.name}): a mask must be bool or float over (batch, head, query, key), but is "
            f"{form}. Leave this site out, or run the model with attn_implementation='eager'."
        )
    return mask


def _sinks(site: Site, call: InterfaceCall) -> Tensor | None:
    sinks = call.sinks if call.sinks is not None else getattr(site.module, "sinks", None)
    return sinks.reshape(-1) if isinstance(sinks, Tensor) and sinks.numel() == call.query.shape[1] else None


def _flex(call: InterfaceCall) -> _Visibility:
    """Causality and padding are in the block mask, which is evaluated; any other mask is added."""
    if not isinstance(call.mask, BlockMask):
        return _Visibility(mask=call.mask)
    n_batch, n_heads = call.mask.shape[:2]
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    device = call.query.device
    return _Visibility(
        mask=create_mask(call.mask.mask_mod, n_batch, n_heads, n_queries, n_keys, device=device)
    )


def _flash(call: InterfaceCall, causal: bool) -> _Visibility:
    """Padding is (batch, key); causality and windows are arguments, aligned at the last key."""
    n_queries, n_keys = call.query.shape[2], call.key.shape[2]
    seen = _Visibility(window=call.window)
    if causal:
        seen.causal_offset = n_keys - n_queries
    if call.mask is not None:
        seen.mask = call.mask[:, None, None, -n_keys:].bool() if call.mask.ndim == 2 else call.mask
    elif call.cu_seqlens_query is not None and call.cu_seqlens_key is not None:
        seen.segments = (
            _segments(call.cu_seqlens_query, n_queries),
            _segments(call.cu_seqlens_key, n_keys),
        )
    elif call.position_ids is not None and call.query.shape[0] == 1 and n_queries == n_keys:
        # Packed samples start anew wherever the positions do not go on by one.
        starts = torch.diff(call.position_ids.reshape(1, -1)) != 1
        segment = torch.nn.functional.pad(starts.long().cumsum(-1), (1, 0))
        seen.segments = (segment, segment)
    return seen


def _segments(cu_seqlens: Tensor, n_tokens: int) -> Tensor:
    positions = torch.arange(n_tokens, device=cu_seqlens.device)
    return torch.bucketize(positions, cu_seqlens[1:], right=True)[None]
