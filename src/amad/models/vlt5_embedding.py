"""What a VL-T5 encoder sees besides text: features and boxes as embeddings."""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import MODEL_MAPPING
from transformers.models.t5.modeling_t5 import T5LayerNorm

from amad.errors import RecipeError, ShapeError
from amad.models.vlt5_config import VLT5Config


class VisualEmbedding(nn.Module):
    """Features and boxes of visual tokens, as vectors of the model's width.

        norm(W_f feature + b_f) + norm(W_b [box, area] + b_b) + image order + token order

    Cho et al. 2021 (arXiv:2102.02779), section 3.1, and the authors' code where the paper is silent. The
    order of visual token i is embedded with row (vocabulary - 1 - i) of the token embedding, which is the
    model's own and not a copy. Which norms there are follows from the configuration.
    """

    def __init__(self, config: VLT5Config) -> None:
        super().__init__()
        self.exact_area = config.box_area == "exact"
        self.feat_embedding = _projection(config.visual_width, config)
        self.absolute_vis_pos_embedding = _projection(config.pos_dim + 1, config)
        self.img_order_embedding: nn.Embedding | None = None
        if config.use_vis_order_embedding:
            self.img_order_embedding = nn.Embedding(config.n_images, config.d_model)
        self.layer_norm: nn.Module | None = None
        if config.use_vis_layer_norm and not config.individual_vis_layer_norm:
            self.layer_norm = T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon)

    def forward(
        self,
        features: Float[Tensor, "batch visual feature"],
        boxes: Float[Tensor, "#batch visual 4"],
        tokens: nn.Embedding,
        img_order_ids: Int[Tensor, "#batch visual"] | None = None,
        obj_order_ids: Int[Tensor, "#batch visual"] | None = None,
    ) -> Float[Tensor, "batch visual d_model"]:
        """The visual tokens' embeddings. Orders that are not given count up from 0, in image 0."""
        box = torch.cat([boxes, box_area(boxes, self.exact_area)], dim=-1)
        dtype = tokens.weight.dtype
        embedding: Tensor = self.feat_embedding(features.to(dtype))
        embedding = embedding + self.absolute_vis_pos_embedding(box.to(dtype))
        if self.img_order_embedding is not None:
            if img_order_ids is None:
                img_order_ids = torch.zeros((1, 1), dtype=torch.long, device=features.device)
            if obj_order_ids is None:
                obj_order_ids = torch.arange(features.shape[1], device=features.device)[None]
            order = tokens(tokens.num_embeddings - 1 - obj_order_ids)
            embedding = embedding + (self.img_order_embedding(img_order_ids) + order)
        if self.layer_norm is not None:
            embedding = self.layer_norm(embedding)
        return embedding


def box_area(boxes: Float[Tensor, "batch visual 4"], exact: bool) -> Float[Tensor, "batch visual 1"]:
    """The fifth number of boxes (x1, y1, x2, y2).

    Exact: the area, (x2-x1)(y2-y1). Otherwise (y2-x2)(y1-x1), what the authors' code computes because it
    reads the same boxes as (x1, x2, y1, y2); their checkpoints depend on it.
    """
    if exact:
        return (boxes[..., 2:3] - boxes[..., 0:1]) * (boxes[..., 3:4] - boxes[..., 1:2])
    return (boxes[..., 3:4] - boxes[..., 2:3]) * (boxes[..., 1:2] - boxes[..., 0:1])


def grid_boxes(rows: int, columns: int, device: torch.device) -> Float[Tensor, "1 visual 4"]:
    """Boxes (x1, y1, x2, y2) of a grid of patches, row by row, in parts of the image's width and height."""
    y, x = torch.meshgrid(
        torch.arange(rows, device=device, dtype=torch.float32),
        torch.arange(columns, device=device, dtype=torch.float32),
        indexing="ij",
    )
    boxes = torch.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], dim=-1)
    return boxes.flatten(0, 1)[None]


def image_patches(
    pixels: Float[Tensor, "batch channel height width"], config: VLT5Config
) -> tuple[Float[Tensor, "batch visual feature"], tuple[int, int]]:
    """The pixels of each patch as one feature, channel by channel; and the patches' rows and columns.

    Patches lie row by row.

    Raises:
        ShapeError: if the images have not the size or the channels of the configuration.
    """
    channels, side, patch = config.num_channels, config.image_size, config.patch_size
    if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (channels, side, side):
        raise ShapeError(
            f"pixel_values must be (batch, {channels}, {side}, {side}), as the configuration says, but are "
            f"{tuple(pixels.shape)}. Resize the images, or change image_size and num_channels."
        )
    n_batch, count = pixels.shape[0], side // patch
    tiles = pixels.reshape(n_batch, channels, count, patch, count, patch)
    patches = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n_batch, count * count, channels * patch * patch)
    return patches, (count, count)


def build_vision_model(vision: Any) -> nn.Module:
    """A vision model of this configuration, randomly initialised, without a pooler where it can be left out.

    Raises:
        RecipeError: if transformers has no bare model for the configuration.
    """
    try:
        model_class = MODEL_MAPPING[type(vision)]
    except KeyError as error:
        raise RecipeError(
            f"transformers has no bare model for a {type(vision).__name__}. Give the configuration of a "
            "vision model, for instance a ViTConfig."
        ) from error
    # A pooler would hold parameters that never get a gradient, which stops distributed training.
    accepts = inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if "add_pooling_layer" in accepts else {}
    model: nn.Module = model_class._from_config(vision, **options)
    return model


def patch_states(
    states: Float[Tensor, "batch ..."], grid: tuple[int, int] | None
) -> tuple[Float[Tensor, "batch visual feature"], tuple[int, int]]:
    """A vision model's last states as one token per patch, row by row; and their rows and columns.

    Tokens in front of the patches (class, distillation, register tokens) are left out: they have no box. A
    feature map (batch, feature, rows, columns) is its own grid.

    Raises:
        ShapeError: if the states are neither a map nor as many tokens as the grid has.
    """
    if states.ndim == 4:
        return states.flatten(2).transpose(1, 2), (states.shape[2], states.shape[3])
    if states.ndim != 3 or grid is None or states.shape[1] < grid[0] * grid[1]:
        expected = "a grid that its configuration names" if grid is None else f"{grid[0]} x {grid[1]} patches"
        raise ShapeError(
            f"The vision model's last states must be {expected}, or a map (batch, feature, rows, columns), "
            f"but are {tuple(states.shape)}. Check image_size and patch_size of vision_config, or pick "
            "another model."
        )
    return states[:, states.shape[1] - grid[0] * grid[1] :], grid


def _projection(width: int, config: VLT5Config) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(width, config.d_model)]
    if config.use_vis_layer_norm and config.individual_vis_layer_norm:
        layers.append(T5LayerNorm(config.d_model, eps=config.layer_norm_epsilon))
    return nn.Sequential(*layers)
