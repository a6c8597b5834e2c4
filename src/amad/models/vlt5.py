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

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput
from transformers.models.t5.modeling_t5 import T5ForConditionalGeneration, T5Model, T5PreTrainedModel, T5Stack
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from amad.errors import RecipeError, ShapeError
from amad.models.vlt5_config import VLT5Config
from amad.models.vlt5_embedding import (
    VisualEmbedding,
    build_vision_model,
    grid_boxes,
    image_patches,
    patch_states,
)

__all__ = ["JointEncoder", "VLT5Config", "VLT5ForConditionalGeneration", "VLT5Model"]

_VISUAL_INPUTS = ("vis_feats", "boxes", "img_order_ids", "obj_order_ids", "pixel_values")


class _VisionLanguageT5(T5PreTrainedModel):  # type: ignore[misc]
    """What every part of a VL-T5 tells transformers about itself."""

    config: VLT5Config
    config_class = VLT5Config
    input_modalities = ("image", "text")
    # T5's position bias fails under flex attention in batches of more than one.
    _supports_flex_attn = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers would otherwise leave out T5's initialisation of attention and feed-forward.

        It skips modules without parameters of their own in models from other packages, and those of T5 draw their
        children's weights from there.
        """
        return False

    @property
    def visual_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches that end the encoder's tokens, row by row; None for regions."""
        return self.config.visual_grid


class JointEncoder(_VisionLanguageT5, T5Stack):  # type: ignore[misc]
    """T5's encoder over text tokens followed by visual tokens."""

    def __init__(self, config: VLT5Config) -> None:
        config.check_visual()
        super().__init__(config)
        self.vision_model: nn.Module | None = None
        if config.visual_source == "vision_model":
            self.vision_model = build_vision_model(config.vision_config)
        self.visual_embedding = VisualEmbedding(config)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _init_weights(self, module: nn.Module) -> None:
        """T5's; projections get the variance 1 / fan-in, image orders that of token embeddings."""
        super()._init_weights(module)
        if isinstance(module, VisualEmbedding):
            factor = self.config.initializer_factor
            for projection in (module.feat_embedding[0], module.absolute_vis_pos_embedding[0]):
                init.normal_(projection.weight, mean=0.0, std=factor * projection.weight.shape[1] ** -0.5)
                init.zeros_(projection.bias)
            if module.img_order_embedding is not None:
                init.normal_(module.img_order_embedding.weight, mean=0.0, std=factor)

    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Int[Tensor, "batch token"] | None = None,
        attention_mask: Shaped[Tensor, "batch token"] | None = None,
        inputs_embeds: Float[Tensor, "batch token d_model"] | None = None,
        vis_feats: Float[Tensor, "batch visual feature"] | None = None,
        boxes: Float[Tensor, "batch visual 4"] | None = None,
        vis_attention_mask: Shaped[Tensor, "batch visual"] | None = None,
        img_order_ids: Int[Tensor, "#batch visual"] | None = None,
        obj_order_ids: Int[Tensor, "#batch visual"] | None = None,
        pixel_values: Float[Tensor, "batch channel height width"] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """States of all tokens, text first. The inputs are those of :class:`VLT5ForConditionalGeneration`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise RecipeError("The encoder reads text: give either input_ids or inputs_embeds, and not both.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        features, boxes = self._visual_inputs(vis_feats, boxes, pixel_values)
        if features.shape[0] != inputs_embeds.shape[0]:
            raise ShapeError(
                f"Texts and images must be as many, but there are {inputs_embeds.shape[0]} texts and "
                f"{features.shape[0]} images."
            )
        visual = self.visual_embedding(features, boxes, self.embed_tokens, img_order_ids, obj_order_ids)
        n_text, n_visual = inputs_embeds.shape[1], visual.shape[1]
        joined = torch.cat([inputs_embeds, visual], dim=1)
        mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=joined,
            attention_mask=joint_mask(
                text_mask(input_ids, attention_mask, self.config.pad_token_id),
                vis_attention_mask,
                (joined.shape[0], n_text, n_visual),
                joined.device,
            ),
        )
        states = self.dropout(joined)
        bias = self._position_bias(n_text, n_visual)
        for block in self.block:
            # Positional, as gradient checkpointing wants whatever needs a gradient.
            states = block(states, mask, bias, **kwargs)[0]
        return BaseModelOutput(last_hidden_state=self.dropout(self.final_layer_norm(states)))

    def _position_bias(self, n_text: int, n_visual: int) -> Float[Tensor, "1 head joint joint"] | None:
        """T5's bias between text tokens, zero for every pair that touches a visual one."""
        if len(self.block) == 0:
            return None
        bias: Tensor = self.block[0].layer[0].SelfAttention.compute_bias(n_text, n_text)
        return functional.pad(bias, (0, n_visual, 0, n_visual))

    def _visual_inputs(
        self,
        vis_feats: Float[Tensor, "batch visual feature"] | None,
        boxes: Float[Tensor, "batch visual 4"] | None,
        pixel_values: Float[Tensor, "batch channel height width"] | None,
    ) -> tuple[Float[Tensor, "batch visual feature"], Float[Tensor, "#batch visual 4"]]:
        """Features and boxes from whatever the configuration says that images come as."""
        config = self.config
        if config.visual_source == "regions":
            if vis_feats is None or boxes is None or pixel_values is not None:
                raise self._wrong_inputs("vis_feats and boxes", vis_feats, boxes, pixel_values)
            features = vis_feats
        else:
            if pixel_values is None or vis_feats is not None or boxes is not None:
                raise self._wrong_inputs("pixel_values", vis_feats, boxes, pixel_values)
            if self.vision_model is None:
                features, grid = image_patches(pixel_values, config)
            else:
                states = self.vision_model(pixel_values).last_hidden_state
                features, grid = patch_states(states, config.visual_grid)
            boxes = grid_boxes(*grid, device=features.device)
        self._check_sizes(features, boxes)
        return features, boxes

    def _wrong_inputs(self, wanted: str, *given: Tensor | None) -> RecipeError:
        names = zip(("vis_feats", "boxes", "pixel_values"), given, strict=True)
        got = ", ".join(name for name, value in names if value is not None) or "none of them"
        return RecipeError(
            f"A VL-T5 with visual_source {self.config.visual_source!r} takes {wanted} of vis_feats, boxes and "
            f"pixel_values, but got {got}. Change the data's visual input or the model's visual_source."
        )

    def _check_sizes(self, features: Tensor, boxes: Tensor) -> None:
        width = self.config.visual_width
        if features.ndim != 3 or features.shape[2] != width:
            raise ShapeError(
                f"Visual features must be (batch, visual, {width}), as the configuration says, but are "
                f"{tuple(features.shape)}. Set feat_dim or vision_config to what the features are."
            )
        n_batch, n_visual = features.shape[:2]
        if boxes.shape not in ((n_batch, n_visual, 4), (1, n_visual, 4)):
            raise ShapeError(
                f"boxes must be {(n_batch, n_visual, 4)}, one (x1, y1, x2, y2) per row of vis_feats, but are "
                f"{tuple(boxes.shape)}."
            )
        n_rows = self.embed_tokens.num_embeddings
        if self.config.use_vis_order_embedding and n_visual > n_rows:
            raise ShapeError(
                f"The order of {n_visual} visual tokens is embedded with rows of the vocabulary, which has only "
                f"{n_rows}. Give fewer, or set use_vis_order_embedding to false."
            )


def text_mask(
    input_ids: Int[Tensor, "batch token"] | None,
    attention_mask: Shaped[Tensor, "batch token"] | None,
    pad_token_id: int | None,
) -> Shaped[Tensor, "batch token"] | None:
    """The mask of the text, by default true where a token is not padding; None (all) if none can be told."""
    if attention_mask is not None or input_ids is None or pad_token_id is None:
        return attention_mask
    return input_ids != pad_token_id


def joint_mask(
    text: Shaped[Tensor, "batch token"] | None,
    visual: Shaped[Tensor, "batch visual"] | None,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Bool[Tensor, "batch joint"] | None:
    """True where one of (batch, text, visual) tokens may be attended; None if all may.

    Raises:
        ShapeError: if a mask has not one entry per token.
    """
    if text is None and visual is None:
        return None
    n_batch, *counts = shape
    parts = []
    for name, mask, count in zip(
        ("attention_mask", "vis_attention_mask"), (text, visual), counts, strict=True
    ):
        if mask is None:
            mask = torch.ones((n_batch, count), dtype=torch.bool, device=device)
        if mask.shape != (n_batch, count):
            raise ShapeError(
                f"{name} must be {(n_batch, count)}, one entry per token, but is {tuple(mask.shape)}."
            )
        parts.append(mask.to(torch.bool))
    return torch.cat(parts, dim=1)


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


def _encode_decode(model: T5PreTrainedModel, inputs: dict[str, Any]) -> tuple[Any, Any]:
    """The outputs of encoder and decoder; an encoder output that is among the inputs is used instead."""
    encoder_outputs = inputs.pop("encoder_outputs")
    visual = {name: inputs.pop(name) for name in _VISUAL_INPUTS}
    text = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", "inputs_embeds")}
    vis_attention_mask = inputs.pop("vis_attention_mask")
    decoder = {
        name: inputs.pop(f"decoder_{name}") for name in ("input_ids", "attention_mask", "inputs_embeds")
    }
    if decoder["input_ids"] is None and decoder["inputs_embeds"] is None:
        raise RecipeError("The decoder has nothing to read. Give labels or decoder_input_ids.")
    cache = {name: inputs.pop(name) for name in ("past_key_values", "use_cache")}
    if encoder_outputs is None:
        encoder_outputs = model.encoder(**text, **visual, vis_attention_mask=vis_attention_mask, **inputs)
    elif not isinstance(encoder_outputs, BaseModelOutput):
        encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
    states = encoder_outputs.last_hidden_state
    words = text_mask(text["input_ids"], text["attention_mask"], model.config.pad_token_id)
    n_visual = None if vis_attention_mask is None else vis_attention_mask.shape[1]
    mask = None
    if words is not None or n_visual is not None:
        n_text = words.shape[1] if words is not None else states.shape[1] - n_visual
        sizes = (states.shape[0], n_text, states.shape[1] - n_text)
        mask = joint_mask(words, vis_attention_mask, sizes, states.device)
    decoder_outputs = model.decoder(
        **decoder, **cache, encoder_hidden_states=states, encoder_attention_mask=mask, **inputs
    )
    return encoder_outputs, decoder_outputs


class VLT5Model(_VisionLanguageT5, T5Model):  # type: ignore[misc]
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
        inputs = {name: value for name, value in locals().items() if name not in ("self", "kwargs")}
        encoder, decoder = _encode_decode(self, inputs | kwargs)
        return Seq2SeqModelOutput(last_hidden_state=decoder.last_hidden_state, **_kept(encoder, decoder))


class VLT5ForConditionalGeneration(_VisionLanguageT5, T5ForConditionalGeneration):  # type: ignore[misc]
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
            RecipeError: if visual inputs are missing or of the wrong kind, or the decoder has nothing to read.
            ShapeError: if inputs disagree in a size.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self._shift_right(labels)
        if labels is not None and use_cache is None:
            use_cache = False
        inputs = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "kwargs", "labels", "num_items_in_batch")
        }
        encoder, decoder = _encode_decode(self, inputs | kwargs)
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
