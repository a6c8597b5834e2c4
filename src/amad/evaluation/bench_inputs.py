"""Inputs of the right form for a model, made from its configuration alone."""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from amad.errors import RecipeError

N_REGIONS = 36
"""Regions of an image, as VL-T5's authors have it."""


def random_inputs(model: PreTrainedModel, n: int, text_tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs for so many samples: an image where the model reads one, and words where it reads any.

    Images are as large as the configuration says; VL-T5 on regions gets 36 with their boxes. No word is padding.

    Args:
        model: Its configuration and what its forward takes are read.
        n: Samples.
        text_tokens: Words of each.
        seed: The same seed gives the same inputs.

    Raises:
        RecipeError: if the configuration tells neither the size of images nor that of the vocabulary.
    """
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(model.forward).parameters
    config = model.config
    inputs: dict[str, Tensor] = {}
    shape = _image_shape(config)
    if getattr(config, "visual_source", None) == "regions":
        corners = torch.rand(n, N_REGIONS, 4, generator=generator)
        inputs["vis_feats"] = torch.rand(n, N_REGIONS, config.feat_dim, generator=generator)
        inputs["boxes"] = torch.cat([corners[..., :2] / 2, corners[..., 2:] / 2 + 0.5], -1)
    elif "pixel_values" in accepted and shape is not None:
        inputs["pixel_values"] = torch.randn(n, *shape, generator=generator)
    vocab = getattr(config.get_text_config(), "vocab_size", None)
    if "input_ids" in accepted and vocab:
        inputs["input_ids"] = torch.randint(vocab, (n, text_tokens), generator=generator)
        inputs["attention_mask"] = torch.ones(n, text_tokens, dtype=torch.long)
    if not inputs:
        raise RecipeError(
            f"the configuration of {type(model).__name__} tells neither the size of images nor that of the vocabulary, "
            "so no inputs can be made. Name a recipe whose data it reads."
        )
    dtype = model.dtype
    return {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}


def _image_shape(config: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of the images, from the configuration or its vision part."""
    for home in (config, getattr(config, "vision_config", None)):
        size = getattr(home, "image_size", None)
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else size
            return getattr(home, "num_channels", None) or 3, height, width
    return None
