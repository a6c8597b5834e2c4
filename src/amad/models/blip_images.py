"""Another size of images for a BLIP that is trained."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.blip.modeling_blip import BlipVisionModel

from amad.errors import RecipeError


def resize_images(model: PreTrainedModel, size: int) -> None:
    """Let a BLIP read images of ``size`` by ``size`` pixels: its positions are stretched, as its authors stretch them.

    Bicubic interpolation of the grid of patch positions (models/vit.py of BLIP's code, ``interpolate_pos_embed``). What
    the model computes is then what upstream computes with ``interpolate_pos_encoding=True``.

    Args:
        model: Changed in place: the positions and the size in its configuration.
        size: Height and width.

    Raises:
        RecipeError: if the model has no BLIP vision part, or the size is no multiple of its patches.
    """
    vision = next((module for module in model.modules() if isinstance(module, BlipVisionModel)), None)
    if vision is None:
        raise RecipeError(
            f"model.image_size stretches the positions of BLIP, and the model is a {type(model).__name__}. Leave it "
            "out."
        )
    embeddings = vision.embeddings
    patch = int(embeddings.patch_size)
    if size < patch or size % patch:
        raise RecipeError(
            f"images of {size} x {size} pixels do not divide into patches of {patch} x {patch}. Give a multiple of "
            f"{patch} as model.image_size."
        )
    n_patches = (size // patch) ** 2
    if n_patches != embeddings.num_patches:
        # Only the shape of this argument is read.
        tokens = embeddings.class_embedding.new_empty(1, n_patches + 1, embeddings.embed_dim)
        with torch.no_grad():
            positions = embeddings.interpolate_pos_encoding(tokens, size, size).clone()
        embeddings.position_embedding = nn.Parameter(positions)
    embeddings.image_size = vision.config.image_size = model.config.vision_config.image_size = size
    embeddings.num_patches, embeddings.num_positions = n_patches, n_patches + 1
