"""Eager attention classes whose scores are query times key, plus mask, plus bias: how to read each of them.

That holds only where nothing else (rotation, normalisation, disentangled terms) lies between projection and
score, so a class is listed here after its code was read, and a test compares its map with the one that it
returns.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Arguments = Mapping[str, Any]
"""The arguments of a module's forward, by name."""


def _attention_mask(arguments: Arguments) -> Tensor | None:
    mask: Tensor | None = arguments.get("attention_mask")
    return mask


def _no_mask(arguments: Arguments) -> Tensor | None:
    return None


def _no_bias(module: nn.Module, arguments: Arguments) -> Tensor | None:
    return None


@dataclass(frozen=True)
class Family:
    """Where the parts of a map are in one class of modules.

    Attributes:
        query: Name of the query projection; the same for the key's and the value's.
        fused: Name of the one projection that gives all three, in the order query, key, value.
        heads: Name of the attribute that counts heads.
        width: Name of the attribute that says how wide a head is.
        mask: The mask from the arguments of the call: True where a key may be attended, or a float to add.
        bias: What else is added to the scores.
        projects: Name of the projection that the module applies to its context before it returns; None if it
            returns the context itself.
    """

    query: str = "query"
    key: str = "key"
    value: str = "value"
    fused: str | None = None
    heads: str = "num_attention_heads"
    width: str = "attention_head_size"
    mask: Callable[[Arguments], Tensor | None] = _attention_mask
    bias: Callable[[nn.Module, Arguments], Tensor | None] = _no_bias
    projects: str | None = None


def _blip_text_mask(arguments: Arguments) -> Tensor | None:
    """Cross-attention looks at ``encoder_attention_mask``, which transformers 5.23 never passes on to it."""
    crosses = arguments.get("encoder_hidden_states") is not None
    mask: Tensor | None = arguments.get("encoder_attention_mask" if crosses else "attention_mask")
    return mask


def _layoutlmv3_bias(module: nn.Module, arguments: Arguments) -> Tensor | None:
    terms = []
    if getattr(module, "has_relative_attention_bias", False):
        terms.append(arguments["rel_pos"])
        if getattr(module, "has_spatial_attention_bias", False):
            terms.append(arguments["rel_2d_pos"])
    width = int(module.attention_head_size)  # type: ignore[arg-type]
    return torch.stack(terms).sum(0) / math.sqrt(width) if terms else None


FAMILIES: dict[str, Family] = {
    "BlipTextSelfAttention": Family(mask=_blip_text_mask),
    "BlipAttention": Family(
        fused="qkv", heads="num_heads", width="head_dim", mask=_no_mask, projects="projection"
    ),
    "ViltSelfAttention": Family(),
    "LayoutLMv3SelfAttention": Family(bias=_layoutlmv3_bias),
}


def family_of(cls: type) -> Family | None:
    """How to read this class, found by its name or that of a base; None if it is not listed."""
    return next((FAMILIES[base.__name__] for base in cls.__mro__ if base.__name__ in FAMILIES), None)
