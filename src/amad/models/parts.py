"""Where a configuration keeps the sizes of each part of its model: layers, heads, widths."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

# Names that transformers gives to the same thing, most specific first. Aliases (``attribute_map``) count.
_WIDTH = ("d_model", "hidden_size")
_HEADS = ("num_heads", "num_attention_heads")
_LAYERS = ("num_hidden_layers",)
_FEED_FORWARD = ("d_ff", "intermediate_size", "ffn_dim", "n_inner")
_HEAD_WIDTH = ("d_kv", "head_dim")
_KEY_HEADS = ("num_key_value_heads",)
# Two stacks in one configuration: encoder's names, decoder's names.
_LAYERS_OF_TWO = (("num_layers", "num_decoder_layers"), ("encoder_layers", "decoder_layers"))


@dataclass(frozen=True)
class Part:
    """One stack, or several that share all sizes, and the attributes of the configuration that size it.

    Attributes:
        name: ``encoder``, ``decoder``, ``vision``, ``text``, or the name of the nested configuration.
        path: Names of the nested configurations that lead to its own.
        layers: Name of the attribute that counts its layers.
        heads: The same for its query heads.
        width: The same for the width of its hidden states.
        feed_forward: The same for the inner width of its feed-forward layers; None: always a multiple of
            width.
        head_width: The same for the width of one head; None: always width over heads.
        key_heads: The same for its key heads; None: always as many as query heads.
    """

    name: str
    path: tuple[str, ...]
    layers: str
    heads: str
    width: str
    feed_forward: str | None = None
    head_width: str | None = None
    key_heads: str | None = None

    def home(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The configuration, maybe nested in this one, that holds the part's sizes."""
        for step in self.path:
            config = getattr(config, step)
        return config

    def size(self, config: PreTrainedConfig, attribute: str | None) -> int:
        """The value of one of the part's attributes."""
        return int(getattr(self.home(config), attribute or ""))


def find_parts(config: PreTrainedConfig) -> list[Part]:
    """Every part whose sizes are known by name: those of the configuration itself, then nested ones.

    Models whose sizes are lists (Swin, and other pyramids) have none.
    """
    return list(_parts(config, ()))


def nested(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The configurations that this one contains, by name."""
    found = {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: inner for name, inner in found.items() if isinstance(inner, PreTrainedConfig)}


def _parts(config: PreTrainedConfig, path: tuple[str, ...]) -> Iterator[Part]:
    yield from _own_parts(config, path)
    for name, inner in nested(config).items():
        yield from _parts(inner, (*path, name))


def _own_parts(config: PreTrainedConfig, path: tuple[str, ...]) -> Iterator[Part]:
    width, heads = _first(config, _WIDTH), _first(config, _HEADS)
    if width is None or heads is None:
        return
    shared: dict[str, Any] = {
        "path": path,
        "width": width,
        "head_width": _first(config, _HEAD_WIDTH),
        "key_heads": _first(config, _KEY_HEADS),
    }
    for encoder_layers, decoder_layers in _LAYERS_OF_TWO:
        if _is_size(config, encoder_layers) and _is_size(config, decoder_layers):
            for name, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
                yield Part(
                    name=".".join((*map(_short, path), name)),
                    layers=layers,
                    heads=_first(config, (f"{name}_attention_heads",)) or heads,
                    feed_forward=_first(config, (f"{name}_ffn_dim", *_FEED_FORWARD)),
                    **shared,
                )
            return
    layers_of_one = _first(config, _LAYERS)
    if layers_of_one is None:
        return
    own = "text" if hasattr(config, "vocab_size") else "vision"
    yield Part(
        name=".".join(map(_short, path)) if path else own,
        layers=layers_of_one,
        heads=heads,
        feed_forward=_first(config, _FEED_FORWARD),
        **shared,
    )


def _short(name: str) -> str:
    return name.removesuffix("_config")


def _first(config: PreTrainedConfig, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _is_size(config, name)), None)


def _is_size(config: PreTrainedConfig, name: str) -> bool:
    value = getattr(config, name, None)
    return isinstance(value, int) and not isinstance(value, bool)
