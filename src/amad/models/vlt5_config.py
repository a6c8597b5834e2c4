"""The settings of a VL-T5: those of a T5, and what the encoder sees besides text."""

import copy
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.t5.configuration_t5 import T5Config

from amad.errors import RecipeError

VISUAL_SOURCES = ("regions", "patches", "vision_model")
BOX_AREAS = ("published", "exact")


class VLT5Config(T5Config):  # type: ignore[misc]
    """A T5 configuration with a visual embedding (Cho et al. 2021, arXiv:2102.02779, section 3.1).

    Every attribute of ``T5Config`` keeps its meaning. The published models have a vocabulary of 32,200:
    32,000 pieces, 100 ``<extra_id>`` and 100 ``<vis_extra_id>``. Rows of the vocabulary, counted from the
    last one, also embed the order of the visual tokens: reserve as many, or set ``use_vis_order_embedding``
    to false.

    Attributes:
        visual_source: ``regions``: features and boxes of an object detector, as published. ``patches``: the
            pixels of square patches take the features' place, and the patch grid that of the boxes.
            ``vision_model``: the last states of a Hugging Face vision model do, without the class token. The
            last two are this project's, not the authors'.
        feat_dim: Numbers per region feature. Only read with ``regions``.
        pos_dim: Numbers per box; 4.
        n_images: Rows of the image order embedding. A single image has order 0.
        use_vis_order_embedding: Add the embeddings of the image's and of the visual token's order.
        use_vis_layer_norm: Normalise the visual embedding at all.
        individual_vis_layer_norm: Normalise feature and box each on its own; otherwise their sum with the
            orders.
        box_area: The fifth number of a box (x1, y1, x2, y2). ``published``: (y2-x2)(y1-x1), which the
            authors' code computes and their checkpoints have learned. ``exact``: the area, (x2-x1)(y2-y1).
        image_size: Height and width of the images, in pixels. Only read with ``patches``.
        patch_size: Height and width of a patch, in pixels. Only read with ``patches``.
        num_channels: Channels of the images. Only read with ``patches``.
        vision_config: Nested configuration of the vision model. Needed by, and only by, ``vision_model``.

    Raises:
        RecipeError: if a value is not one of those above, if the patches do not tile the image, if the vision
            configuration is missing or superfluous, or if the visual tokens outnumber the vocabulary.
    """

    model_type = "vlt5"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig}

    vocab_size: int = 32200
    decoder_start_token_id: int | None = 0
    visual_source: str = "regions"
    feat_dim: int = 2048
    pos_dim: int = 4
    n_images: int = 2
    use_vis_order_embedding: bool = True
    use_vis_layer_norm: bool = True
    individual_vis_layer_norm: bool = True
    box_area: str = "published"
    image_size: int = 224
    patch_size: int = 32
    num_channels: int = 3
    vision_config: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.vision_config, dict):
            self.vision_config = _vision_config(self.vision_config)
        super().__post_init__(**kwargs)
        self.check_visual()

    @property
    def visual_width(self) -> int:
        """Numbers per visual token before it is projected to ``d_model``."""
        if self.visual_source == "patches":
            return self.num_channels * self.patch_size**2
        if self.visual_source == "vision_model":
            return _last_width(self.vision_config)
        return self.feat_dim

    @property
    def visual_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the patches that end the encoder's tokens, row by row; None if there are none.

        A vision model whose configuration does not name an image size and a patch size has none here, even if
        its states form one.
        """
        if self.visual_source == "patches":
            side = self.image_size // self.patch_size
            return side, side
        if self.visual_source == "vision_model":
            return _vision_grid(self.vision_config)
        return None

    def check_visual(self) -> None:
        """Refuse visual settings that contradict one another.

        Raises:
            RecipeError: as the class says.
        """
        if self.visual_source not in VISUAL_SOURCES:
            raise RecipeError(
                f"visual_source is {self.visual_source!r}. Choose one of {', '.join(VISUAL_SOURCES)}."
            )
        if self.box_area not in BOX_AREAS:
            raise RecipeError(f"box_area is {self.box_area!r}. Choose one of {', '.join(BOX_AREAS)}.")
        if self.pos_dim != 4:
            raise RecipeError(
                f"A box has 4 numbers (x1, y1, x2, y2), but pos_dim is {self.pos_dim}. Set it to 4."
            )
        if self.visual_source == "patches" and (self.patch_size < 1 or self.image_size % self.patch_size):
            raise RecipeError(
                f"Patches must tile the image: image_size {self.image_size} is no multiple of patch_size "
                f"{self.patch_size}. Change one of them."
            )
        if (self.visual_source == "vision_model") != (self.vision_config is not None):
            state = "missing" if self.vision_config is None else "given"
            raise RecipeError(
                f"visual_source is {self.visual_source!r} and vision_config is {state}. "
                "Give a vision_config with, and only with, visual_source 'vision_model'."
            )
        grid = self.visual_grid
        if grid is not None and self.use_vis_order_embedding and grid[0] * grid[1] > self.vocab_size:
            raise RecipeError(
                f"The order of {grid[0]} x {grid[1]} visual tokens is embedded with rows of the vocabulary, "
                f"which has only {self.vocab_size}. Use larger patches, or set use_vis_order_embedding to "
                "false."
            )

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "VLT5Config":
        """As in transformers, except that the decoder's copy counts the decoder's layers.

        A key/value cache is made from that copy; with the encoder's count, a decoder that is deeper than the
        encoder runs out of it.
        """
        config: VLT5Config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder and config.num_decoder_layers not in (None, config.num_layers):
            config = copy.copy(config)
            config.num_layers = config.num_decoder_layers
        return config


def _vision_config(values: dict[str, Any]) -> PreTrainedConfig:
    """The configuration object that a nested dictionary stands for."""
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise RecipeError("vision_config has no model_type. Name the vision model's, for instance 'vit'.")
    try:
        return AutoConfig.for_model(model_type, **values)
    except ValueError as error:
        raise RecipeError(
            f"vision_config has the model_type {model_type!r}, which transformers lacks."
        ) from error


def _last_width(vision: Any) -> int:
    """Width of a vision model's last states: what it calls hidden_size, or the last of its hidden_sizes."""
    width = getattr(vision, "hidden_size", None)
    if width is None and getattr(vision, "hidden_sizes", None):
        width = vision.hidden_sizes[-1]
    if width is None:
        raise RecipeError(
            f"The vision model {vision.model_type!r} does not name the width of its last states: its "
            "configuration has neither hidden_size nor hidden_sizes. Pick another."
        )
    return int(width)


def _vision_grid(vision: Any) -> tuple[int, int] | None:
    """Rows and columns of a vision model's last states; a pyramid halves its grid between its stages."""
    image, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if image is None or patch is None:
        return None
    stages = getattr(vision, "depths", None)
    shrink = 2 ** (len(stages) - 1) if stages else 1
    rows, columns = _pair(image)
    patch_rows, patch_columns = _pair(patch)
    return rows // (patch_rows * shrink), columns // (patch_columns * shrink)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
