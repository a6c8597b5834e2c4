"""Heads, key heads and head width of an attention module, read without running it."""

from typing import Any, NamedTuple

from torch import nn

_HEADS = ("num_heads", "n_heads", "num_attention_heads", "n_head")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads")
_WIDTH = (
    "qk_head_dim",
    "head_dim",
    "attention_head_size",
    "key_value_proj_dim",
    "d_kv",
    "attention_head_dim",
    "dim_per_head",
)
_QUERY = ("q_proj", "query", "q", "q_lin", "query_proj", "wq", "to_q", "linear_q")
_KEY = ("k_proj", "key", "k", "k_lin", "key_proj", "wk", "to_k", "linear_k")
_FUSED = ("qkv", "qkv_proj", "query_key_value", "c_attn", "Wqkv", "in_proj")


class Geometry(NamedTuple):
    """Sizes of one site's query and key."""

    n_heads: int
    n_kv_heads: int
    width: int


def read_geometry(module: nn.Module) -> Geometry | None:
    """Geometry from attributes, else from the shapes of projections, else from the module's configuration.

    None if none of them tells. What a forward pass shows may differ; :func:`amad.capture.check.confirm_sites`
    asks it.
    """
    config = getattr(module, "config", None)
    query, key, fused = (_out_features(module, names) for names in (_QUERY, _KEY, _FUSED))
    heads = _number(module, _HEADS)
    width = _number(module, _WIDTH)
    if heads is None and query and width:
        heads = query // width
    if heads is None:
        heads = _number(config, _HEADS)
    if width is None and heads and (query or fused):
        width = query // heads if query else fused // 3 // heads  # type: ignore[operator]
    if not heads or not width:
        return None
    kv_heads = _number(module, _KV_HEADS)
    if kv_heads is None and query and key:
        kv_heads = key // width
    if kv_heads is None:
        kv_heads = heads // (_number(module, ("num_key_value_groups",)) or 1)
    return Geometry(heads, kv_heads or heads, width)


def _number(owner: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _out_features(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for name in names:
        projection = getattr(module, name, None)
        weight = getattr(projection, "weight", None)
        if isinstance(projection, nn.Module) and weight is not None and weight.ndim == 2:
            # GPT-2's Conv1D holds its weight transposed.
            return int(weight.shape[1 if type(projection).__name__ == "Conv1D" else 0])
    return None
