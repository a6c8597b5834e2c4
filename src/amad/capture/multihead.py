"""Back-end ``multihead``: ``torch.nn.MultiheadAttention``; query and key are computed again from its inputs.

Its fused paths never show them. The projections are linear in the number of tokens, so this costs little; it
happens when the record is read, which under sharded parameters must be inside the model's forward.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from amad.capture.backend import Calls, Evidence, attend, recomputing
from amad.capture.record import AttentionRecord
from amad.capture.sites import Site
from amad.errors import CaptureError


class MultiheadCall(NamedTuple):
    """The arguments of one call, by name, and what it gave."""

    arguments: dict[str, Any]
    output: Tensor | None = None
    with_value: bool = False


def attach(
    site: Site, calls: Calls, *, with_evidence: bool = False, with_value: bool = False
) -> Callable[[], None]:
    """See :class:`amad.capture.backend.Backend`."""
    signature = inspect.signature(nn.MultiheadAttention.forward)

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not recomputing():
            bound = signature.bind(module, *args, **kwargs)
            calls.append(
                MultiheadCall(dict(bound.arguments), output[0] if with_evidence else None, with_value)
            )

    return site.module.register_forward_hook(keep, with_kwargs=True).remove


def read(site: Site, call: MultiheadCall) -> AttentionRecord:
    """See :class:`amad.capture.backend.Backend`."""
    module = _multihead(site)
    query, key = _project(module, call, "query"), _project(module, call, "key")
    return AttentionRecord(
        site=site.key,
        query=query,
        key=key,
        scale=module.head_dim**-0.5,
        mask=_mask(module, call, query),
        value=_project(module, call, "value") if call.with_value else None,
    )


def evidence(site: Site, call: MultiheadCall, record: AttentionRecord) -> Evidence | None:
    """See :class:`amad.capture.backend.Backend`."""
    if call.output is None:
        return None
    module = _multihead(site)
    context = attend(record, _project(module, call, "value")).flatten(2)
    weight, bias = module.out_proj.weight.float(), module.out_proj.bias
    recomputed = functional.linear(context, weight, None if bias is None else bias.float())
    return Evidence(_batch_first(module, call.output), recomputed)


def _multihead(site: Site) -> nn.MultiheadAttention:
    module = site.module
    if not isinstance(module, nn.MultiheadAttention):
        raise CaptureError(f"{site.key} ({site.name}): {type(module).__name__} is no nn.MultiheadAttention.")
    if module.bias_k is not None or module.add_zero_attn:
        raise CaptureError(
            f"{site.key} ({site.name}): keys that are not tokens (add_bias_kv, add_zero_attn) cannot be "
            "recorded. Leave this site out."
        )
    return module


def _batch_first(module: nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    if tokens.ndim == 2:
        return tokens[None]
    return tokens if module.batch_first else tokens.transpose(0, 1)


def _project(module: nn.MultiheadAttention, call: MultiheadCall, role: str) -> Tensor:
    """One input, projected, as (batch, head, token, width)."""
    place = ("query", "key", "value").index(role)
    rows = slice(place * module.embed_dim, (place + 1) * module.embed_dim)
    if module.in_proj_weight is not None:
        weight = module.in_proj_weight[rows]
    else:
        weight = getattr(module, f"{role[0]}_proj_weight")
    bias = None if module.in_proj_bias is None else module.in_proj_bias[rows]
    # Under mixed precision they may have another type than the weights.
    tokens = _batch_first(module, call.arguments[role]).to(weight.dtype)
    projected = functional.linear(tokens, weight, bias)
    return projected.reshape(*tokens.shape[:2], module.num_heads, -1).transpose(1, 2)


def _mask(module: nn.MultiheadAttention, call: MultiheadCall, query: Tensor) -> Tensor | None:
    """Both masks as one; in torch's module True means that a key is hidden."""
    mask: Tensor | None = call.arguments.get("attn_mask")
    padding: Tensor | None = call.arguments.get("key_padding_mask")
    if mask is not None:
        mask = ~mask if mask.dtype == torch.bool else mask
        mask = mask[None] if mask.ndim == 2 else mask
        mask = mask.reshape(-1, module.num_heads if len(mask) > 1 else 1, *mask.shape[1:])
    if padding is None:
        return mask
    padding = padding.reshape(query.shape[0], 1, 1, -1)
    padding = ~padding if padding.dtype == torch.bool else padding
    if mask is None:
        return padding
    if mask.dtype == torch.bool and padding.dtype == torch.bool:
        return mask & padding
    return _additive(mask, query.dtype) + _additive(padding, query.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, -torch.inf)
