"""VL-T5's encoder: text and visual tokens in one sequence."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5PreTrainedModel, T5Stack
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


class VLT5PreTrainedModel(T5PreTrainedModel):  # type: ignore[misc]
    """What every part of a VL-T5 tells transformers about itself."""

    config: VLT5Config
    config_class = VLT5Config
    input_modalities = ("image", "text")
    # T5's position bias fails under flex attention in batches of more than one.
    _supports_flex_attn = False

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: transformers would otherwise leave out T5's initialisation of attention and feed-forward.

        In models from other packages it skips modules without parameters of their own, and those are where T5
        draws the weights of their children.
        """
        return False

    def set_attn_implementation(
        self, attn_implementation: str | dict[str, Any], allow_all_kernels: bool = False
    ) -> None:
        """As in transformers; encoder and decoder always compute attention as the whole model does."""
        super().set_attn_implementation(attn_implementation, allow_all_kernels)
        # transformers 5.17 passes over submodels whose configuration is of their parent's class.
        for stack in self.children():
            if isinstance(stack, T5Stack):
                stack.set_attn_implementation({"": self.config._attn_implementation})

    @property
    def visual_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches that end the encoder's tokens, row by row; None for regions."""
        return self.config.visual_grid


class JointEncoder(VLT5PreTrainedModel, T5Stack):  # type: ignore[misc]
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
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    init.normal_(layer.weight, mean=0.0, std=factor * layer.in_features**-0.5)
                    init.zeros_(layer.bias)
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
            f"A VL-T5 with visual_source {self.config.visual_source!r} takes {wanted} of vis_feats, boxes "
            f"and pixel_values, but got {got}. Change the data's visual input or the model's visual_source."
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
                f"The order of {n_visual} visual tokens is embedded with rows of the vocabulary, which has "
                f"only {n_rows}. Give fewer, or set use_vis_order_embedding to false."
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
