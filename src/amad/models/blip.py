"""Hugging Face BLIP on fast attention, with the outputs that it has without.

The BLIP of transformers computes its attention itself and knows no other way. :func:`dispatch_attention`
gives the attention modules of a built model another class, which does the same through the attention
interface of transformers, so that no map is built and a recorder sees query and key. Parameters, their names,
what ``save_pretrained`` writes and the class of the model stay as they are.

Two things of upstream are kept because published weights were trained, and are judged, with them:

* The answer decoder of BLIP for questions does not see the padding mask of the question: upstream hands the
  mask to its cross-attention under a name that is not read. Padded positions of a question are attended to,
  so its answers depend on how far a batch was padded. BLIP's authors mask them, and so does
  :mod:`amad.models.blip_seq2seq`; on questions without padding all agree.
* Vision maps that ``output_attentions`` returns are those after dropout, text maps those before.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BlipConfig, PreTrainedModel
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextEncoder, BlipTextModel, BlipTextSelfAttention

from amad.errors import RecipeError

IMPLEMENTATIONS = ("sdpa", "eager")
"""Attention that BLIP can be dispatched to."""

_MODE = inspect.signature(BlipTextModel.forward)


def dispatch_attention(model: PreTrainedModel, implementation: str | None = None) -> PreTrainedModel:
    """The same model, with every BLIP attention in it on the attention interface of transformers.

    A model with no BLIP in it is returned as it is, and so is one that was dispatched before, unless another
    implementation is asked for. Losses, logits, gradients and generated tokens stay what they were to
    rounding, with two exceptions: attention dropout draws other random numbers, and rows of a text map in
    which every key is masked (left padding) give zero where they gave an average of padding.

    Args:
        model: Changed in place: classes of modules and ``config._attn_implementation``, no parameters.
        implementation: One of :data:`IMPLEMENTATIONS`; None: ``sdpa``, or what it was dispatched to before.
            ``eager`` is needed for ``output_attentions=True``.

    Raises:
        RecipeError: another implementation.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise RecipeError(
            f"BLIP attends through one of {', '.join(IMPLEMENTATIONS)}, "
            f"and {implementation!r} was asked for. Name one of them."
        )
    changed = False
    configs = []
    for module in model.modules():
        if type(module) is BlipAttention:
            module.__class__ = DispatchedBlipAttention
            changed = True
        elif type(module) is BlipTextSelfAttention:
            module.__class__ = DispatchedBlipTextSelfAttention
            changed = True
        elif type(module) is BlipTextEncoder:
            module.__class__ = DispatchedBlipTextEncoder
        elif isinstance(module, BlipTextModel) and _note_mode not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_note_mode, with_kwargs=True)
        if isinstance(module, DispatchedBlipAttention | DispatchedBlipTextSelfAttention):
            configs.append(module.config)
    if configs and (changed or implementation is not None):
        if isinstance(model.config, BlipConfig):
            configs.append(model.config)
        for config in configs:
            config._attn_implementation = implementation or "sdpa"
    return model


class DispatchedBlipAttention(BlipAttention):  # type: ignore[misc]
    """BLIP's vision attention: one projection to query, key and value, no mask."""

    is_causal = False
    maps_after_dropout = True

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """States of the same shape, and the maps where the implementation builds them."""
        n_batch, n_tokens, width = hidden_states.shape
        mixed = self.qkv(hidden_states).view(n_batch, n_tokens, 3, self.num_heads, self.head_dim)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _attend_eagerly)
        output, maps = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scale,
        )
        return self.projection(output.reshape(n_batch, n_tokens, width)), maps


class DispatchedBlipTextSelfAttention(BlipTextSelfAttention):  # type: ignore[misc]
    """BLIP's text attention: to its own tokens, or to states of an encoder that are given."""

    # The mask that arrives says all there is to causality: see DispatchedBlipTextEncoder.
    is_causal = False
    maps_after_dropout = False
    # Whether the mask that upstream loses is used: see the module's docstring.
    hides_padding = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """States of the same shape, and the maps where the implementation builds them."""
        crosses = encoder_hidden_states is not None
        mask = encoder_attention_mask if crosses and not self.hides_padding else attention_mask
        query = self._split_heads(self.query(hidden_states))
        source = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        key, value = self._keys_and_values(source, crosses, past_key_values)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _attend_eagerly)
        output, maps = attend(
            self,
            query,
            key,
            value,
            None if mask is None else mask.to(query.device),
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.attention_head_size**-0.5,
        )
        return output.reshape(*hidden_states.shape[:-1], self.all_head_size), maps

    def _split_heads(self, states: Tensor) -> Tensor:
        shape = (*states.shape[:-1], self.num_attention_heads, self.attention_head_size)
        return states.view(shape).transpose(1, 2)

    def _keys_and_values(self, source: Tensor, crosses: bool, cache: Any) -> tuple[Tensor, Tensor]:
        """Projected, or from the cache, which keeps those of the encoder and grows by those of new tokens."""
        layers = cache
        if isinstance(cache, EncoderDecoderCache):
            layers = cache.cross_attention_cache if crosses else cache.self_attention_cache
            if crosses and cache.is_updated.get(self.layer_idx):
                return layers.layers[self.layer_idx].keys, layers.layers[self.layer_idx].values
        key, value = self._split_heads(self.key(source)), self._split_heads(self.value(source))
        if cache is not None:
            key, value = layers.update(key, value, self.layer_idx)
            if crosses and isinstance(cache, EncoderDecoderCache):
                cache.is_updated[self.layer_idx] = True
        return key, value


class DispatchedBlipTextEncoder(BlipTextEncoder):  # type: ignore[misc]
    """BLIP's text layers, which get a causal mask whenever they decode.

    For SDPA transformers leaves the mask out where it is causal and nothing is padded, and relies on a flag
    of the module. The same module class encodes and decodes here, so the mask is written out; BLIP's texts
    are short.
    """

    decodes = False

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """What upstream's layers return."""
        n_tokens = hidden_states.shape[1]
        if attention_mask is None and self.decodes and n_tokens > 1:
            ones = torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=hidden_states.device)
            attention_mask = ones.tril()[None, None]
        return super().forward(hidden_states, attention_mask, *args, **kwargs)


def _note_mode(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Tell the layers of a text model whether this call encodes or decodes."""
    arguments = _MODE.bind_partial(module, *args, **kwargs).arguments
    module.encoder.decodes = bool(arguments.get("is_decoder", False))  # type: ignore[union-attr]


def _attend_eagerly(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with its map, as upstream's BLIP computes it; states as (batch, query, head, width)."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    maps = scores.softmax(-1)
    dropped = functional.dropout(maps, dropout)
    output = torch.matmul(dropped, value).transpose(1, 2).contiguous()
    return output, dropped if module.maps_after_dropout else maps
