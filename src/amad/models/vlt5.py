"""VL-T5 as an ordinary Hugging Face model: a T5 whose encoder reads text and visual tokens together.

Cho, Lei, Tan, Bansal 2021, Unifying Vision-and-Language Tasks via Text Generation (arXiv:2102.02779).
Importing this module makes ``vlt5`` known to AutoConfig, AutoModel, AutoModelForSeq2SeqLM and
AutoModelForImageTextToText.

The encoder's tokens are the text's, then the visual ones. Their relative position bias is T5's between two
text tokens and zero for every pair that touches a visual one; it is the same in all layers. The decoder is
T5's own and attends to all of the encoder's tokens. All attention goes through the attention interface of
transformers.
"""

import copy
from typing import Any

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration, T5Model, T5PreTrainedModel, T5Stack
from transformers.utils.generic import can_return_tuple

from amad.errors import RecipeError
from amad.models.vlt5_config import VLT5Config
from amad.models.vlt5_encoder import JointEncoder, VLT5PreTrainedModel, joint_mask, text_mask

__all__ = ["JointEncoder", "VLT5Config", "VLT5ForConditionalGeneration", "VLT5Model"]

_VISUAL_INPUTS = ("vis_feats", "boxes", "img_order_ids", "obj_order_ids", "pixel_values")


def _build(model: T5PreTrainedModel, config: VLT5Config) -> None:
    """Give a model the shared embedding, the joint encoder and T5's decoder."""
    model.shared = nn.Embedding(config.vocab_size, config.d_model)
    for name, stack, changes in (
        ("encoder", JointEncoder, {"is_decoder": False, "use_cache": False}),
        ("decoder", T5Stack, {"is_decoder": True, "num_layers": config.num_decoder_layers}),
    ):
        own = copy.deepcopy(config)
        # One object for all: an attention implementation is set on the nested configuration by identity.
        own.vision_config = config.vision_config
        for attribute, value in changes.items():
            setattr(own, attribute, value)
        setattr(model, name, stack(own))


def _encoded(model: VLT5PreTrainedModel, encoder_outputs: Any, **inputs: Any) -> BaseModelOutput:
    """The outputs of the encoder: the given ones, or those that it computes."""
    if encoder_outputs is None:
        encoder_outputs = model.encoder(**inputs)
    elif not isinstance(encoder_outputs, BaseModelOutput):
        encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
    return encoder_outputs


def _decoded(
    model: VLT5PreTrainedModel,
    states: Float[Tensor, "batch joint d_model"],
    text: Shaped[Tensor, "batch token"] | None,
    visual: Shaped[Tensor, "batch visual"] | None,
    **inputs: Any,
) -> Any:
    """The outputs of the decoder, which attends to what the masks of text and visual tokens leave."""
    if inputs["input_ids"] is None and inputs["inputs_embeds"] is None:
        raise RecipeError("The decoder has nothing to read. Give labels or decoder_input_ids.")
    n_batch, n_joint = states.shape[:2]
    n_text = 0
    if text is not None:
        n_text = text.shape[1]
    elif visual is not None:
        n_text = n_joint - visual.shape[1]
    mask = joint_mask(text, visual, (n_batch, n_text, n_joint - n_text), states.device)
    return model.decoder(encoder_hidden_states=states, encoder_attention_mask=mask, **inputs)


class VLT5Model(VLT5PreTrainedModel, T5Model):  # type: ignore[misc]
    """VL-T5 without its head: the decoder's states. Inputs as in :class:`VLT5ForConditionalGeneration`."""

    def __init__(self, config: VLT5Config) -> None:
        T5PreTrainedModel.__init__(self, config)
        _build(self, config)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        attention_mask: Shaped[Tensor, "batch token"] | None = None,
        vis_feats: Float[Tensor, "batch visual feature"] | None = None,
        boxes: Float[Tensor, "batch visual 4"] | None = None,
        vis_attention_mask: Shaped[Tensor, "batch visual"] | None = None,
        img_order_ids: Int[Tensor, "#batch visual"] | None = None,
        obj_order_ids: Int[Tensor, "#batch visual"] | None = None,
        pixel_values: Float[Tensor, "batch channel height width"] | None = None,
        decoder_input_ids: Int[Tensor, "batch target"] | None = None,
        decoder_attention_mask: Shaped[Tensor, "batch target"] | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "batch token d_model"] | None = None,
        decoder_inputs_embeds: Float[Tensor, "batch target d_model"] | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        """The decoder's states after its last norm, and what was asked to be kept."""
        encoder = _encoded(
            self,
            encoder_outputs,
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            vis_feats=vis_feats,
            boxes=boxes,
            vis_attention_mask=vis_attention_mask,
            img_order_ids=img_order_ids,
            obj_order_ids=obj_order_ids,
            pixel_values=pixel_values,
            **kwargs,
        )
        decoder = _decoded(
            self,
            encoder.last_hidden_state,
            text_mask(input_ids, attention_mask, self.config.pad_token_id),
            vis_attention_mask,
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(last_hidden_state=decoder.last_hidden_state, **_kept(encoder, decoder))


class VLT5ForConditionalGeneration(VLT5PreTrainedModel, T5ForConditionalGeneration):  # type: ignore[misc]
    """VL-T5 with the language model head; ``generate`` works as with any encoder-decoder model.

    State-dict names are those of the authors' checkpoints.
    """

    def __init__(self, config: VLT5Config) -> None:
        T5PreTrainedModel.__init__(self, config)
        self.model_dim = config.d_model
        _build(self, config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        attention_mask: Shaped[Tensor, "batch token"] | None = None,
        vis_feats: Float[Tensor, "batch visual feature"] | None = None,
        boxes: Float[Tensor, "batch visual 4"] | None = None,
        vis_attention_mask: Shaped[Tensor, "batch visual"] | None = None,
        img_order_ids: Int[Tensor, "#batch visual"] | None = None,
        obj_order_ids: Int[Tensor, "#batch visual"] | None = None,
        pixel_values: Float[Tensor, "batch channel height width"] | None = None,
        decoder_input_ids: Int[Tensor, "batch target"] | None = None,
        decoder_attention_mask: Shaped[Tensor, "batch target"] | None = None,
        encoder_outputs: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Float[Tensor, "batch token d_model"] | None = None,
        decoder_inputs_embeds: Float[Tensor, "batch target d_model"] | None = None,
        labels: Int[Tensor, "batch target"] | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Logits of the next token after each token of the target and, with labels, the loss.

        Args:
            input_ids: The text.
            attention_mask: True (or 1) where a text token is real. By default, where it is no padding token.
            vis_feats: Region features; with ``regions`` only.
            boxes: Their boxes (x1, y1, x2, y2), divided by the image's width and height.
            vis_attention_mask: True (or 1) where a visual token is real. By default, all are.
            img_order_ids: The image of each visual token. By default 0.
            obj_order_ids: The number of each visual token, whose embedding is that of token (vocabulary - 1 -
                number). By default counted from 0.
            pixel_values: Images; with ``patches`` and ``vision_model`` only.
            decoder_input_ids: What the decoder reads; by default the labels, moved right by one.
            decoder_attention_mask: True (or 1) where a decoder token is real. By default, all are.
            encoder_outputs: States of an earlier call, used instead of text and image. Text and visual masks
                are still read; with none of ``input_ids`` and masks, all states are attended.
            past_key_values: The cache of earlier decoder tokens.
            inputs_embeds: Embeddings in place of ``input_ids``.
            decoder_inputs_embeds: Embeddings in place of ``decoder_input_ids``.
            labels: The target; -100 where it does not count.
            use_cache: Keep keys and values for a later call. By default not with labels, else as the
                configuration says.
            num_items_in_batch: What the sum of the tokens' losses is divided by; the Trainer counts over
                accumulated batches. By default the tokens that count here.
            **kwargs: ``output_attentions``, ``output_hidden_states`` and others that transformers knows.

        Returns:
            The loss is a mean cross entropy in nats, zero if no token counts.

        Raises:
            RecipeError: if visual inputs are missing or of the wrong kind, or if the decoder has no input.
            ShapeError: if inputs disagree in a size.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        if labels is not None and use_cache is None:
            use_cache = False
        encoder = _encoded(
            self,
            encoder_outputs,
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            vis_feats=vis_feats,
            boxes=boxes,
            vis_attention_mask=vis_attention_mask,
            img_order_ids=img_order_ids,
            obj_order_ids=obj_order_ids,
            pixel_values=pixel_values,
            **kwargs,
        )
        decoder = _decoded(
            self,
            encoder.last_hidden_state,
            text_mask(input_ids, attention_mask, self.config.pad_token_id),
            vis_attention_mask,
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            inputs_embeds=decoder_inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        states = decoder.last_hidden_state
        if self.config.scale_decoder_outputs:
            states = states * self.model_dim**-0.5
        logits = self.lm_head(states)
        loss = None if labels is None else _token_loss(logits, labels, num_items_in_batch)
        return Seq2SeqLMOutput(loss=loss, logits=logits, **_kept(encoder, decoder))

    def _expand_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Once the encoder has run, its inputs need no copy per beam."""
        if kwargs.get("encoder_outputs") is not None:
            kwargs = {name: value for name, value in kwargs.items() if name not in _VISUAL_INPUTS}
        return super()._expand_inputs_for_generation(*args, **kwargs)


def _token_loss(
    logits: Float[Tensor, "batch target vocab"],
    labels: Int[Tensor, "batch target"],
    n_items: Tensor | int | None,
) -> Float[Tensor, ""]:
    """Cross entropy of the labels that are not -100: the sum over their number or ``n_items``, in nats."""
    labels = labels.to(logits.device)
    total = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    if n_items is None:
        return total / (labels != -100).sum().clamp(min=1)
    return total / (n_items.to(total.device) if isinstance(n_items, Tensor) else n_items)


def _kept(encoder: Any, decoder: Any) -> dict[str, Any]:
    """What both kinds of output carry along."""
    return {
        "past_key_values": decoder.past_key_values,
        "decoder_hidden_states": decoder.hidden_states,
        "decoder_attentions": decoder.attentions,
        "cross_attentions": decoder.cross_attentions,
        "encoder_last_hidden_state": encoder.last_hidden_state,
        "encoder_hidden_states": encoder.hidden_states,
        "encoder_attentions": encoder.attentions,
    }


AutoConfig.register(VLT5Config.model_type, VLT5Config, exist_ok=True)
AutoModel.register(VLT5Config, VLT5Model, exist_ok=True)
AutoModelForSeq2SeqLM.register(VLT5Config, VLT5ForConditionalGeneration, exist_ok=True)
AutoModelForImageTextToText.register(VLT5Config, VLT5ForConditionalGeneration, exist_ok=True)
