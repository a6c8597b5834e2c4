"""The model at the start of a run, where it is not simply a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

import amad.models.vlt5  # noqa: F401 - registers the model type
from amad.data.collate import Seq2SeqCollator
from amad.data.images import ImageTransform
from amad.errors import RecipeError, ShapeError
from amad.models.blip_pretraining import BlipForPretraining
from amad.models.blip_seq2seq import is_seq2seq
from amad.models.load import load_tokenizer
from amad.recipe import nearest_key
from amad.recipe_data import RecipeData, RegionFiles, VqaData
from amad.training.blip import blip_collator, new_blip

_LONGEST_REASON = 300


def new_model(
    values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, data: RecipeData, seed: int
) -> PreTrainedModel:
    """An encoder-decoder, or the BLIP of a task, with random weights, sized for a tokenizer.

    Args:
        values: ``model.config`` of a recipe, with its ``model_type``.
        tokenizer: Gives the size of the vocabulary and the special tokens.
        data: The recipe's data.
        seed: Of the weights; the global random state is set to it.

    Raises:
        RecipeError: if the model type is missing, unknown or no encoder-decoder, a key is unknown, or a value is
            refused.
    """
    model_type = values.get("model_type")
    if model_type not in CONFIG_MAPPING:
        hint = nearest_key(str(model_type), list(CONFIG_MAPPING)) if model_type else "Name one, such as vlt5."
        raise RecipeError(f"model.config.model_type is {model_type!r}, which is no type of model. {hint}")
    given = {key: value for key, value in values.items() if key != "model_type"}
    if model_type == "blip":
        return new_blip(given, tokenizer, data, seed)
    if CONFIG_MAPPING[model_type] not in AutoModelForSeq2SeqLM._model_mapping:
        raise RecipeError(
            f"model.config.model_type {model_type!r} is no encoder-decoder that generates text, which questions and "
            f"answers need. Name one, such as vlt5 or blip."
        )
    try:
        default = AutoConfig.for_model(model_type)
        for key in given:
            if not hasattr(default, key):
                known = [name for name in vars(default) if not name.startswith("_")]
                raise RecipeError(f"unknown key 'model.config.{key}': {nearest_key(key, known)}")
        given |= {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.pad_token_id,
        }
        set_seed(seed)
        model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(model_type, **given))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise RecipeError(f"model.config makes no model: {reason} Correct the value.") from None
    return model


def new_collator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_transform: ImageTransform | None,
    data: RecipeData,
    pad_to_max: bool = False,
) -> Seq2SeqCollator:
    """What makes batches for a model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        image_transform: What makes pixels of images, where the data shows any.
        data: The recipe's data.
        pad_to_max: Make texts of one length.

    Raises:
        RecipeError: if the data has a form that the model does not read, a BLIP is for another task, or the tokenizer
            does not end texts.
        ShapeError: if a BLIP's tokenizer numbers the tokens otherwise than the model.
    """
    if is_seq2seq(model) or isinstance(model, BlipForPretraining):
        return blip_collator(model, tokenizer, image_transform, data, pad_to_max)
    if isinstance(data, VqaData) and (data.targets == "every" or data.ranking is not None):
        key = "targets: every" if data.targets == "every" else "ranking"
        raise RecipeError(
            f"data.{key} is for BLIP, which reads a question once for all its answers, and the model is a "
            f"{type(model).__name__}. Leave it out."
        )
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.eos_token_id]:
        raise RecipeError(
            f"the tokenizer must end a text with its end token, {tokenizer.eos_token!r}, and does not, so a "
            f"{type(model).__name__} would never learn to stop. Give one that does, such as T5's."
        )
    return Seq2SeqCollator(
        tokenizer, image_transform, data.max_input_tokens, data.max_target_tokens, pad_to_max=pad_to_max
    )


def weights_digest(model: torch.nn.Module) -> str:
    """The first 16 hexadecimal digits of SHA-256 of names and bytes of all parameters, tied ones once."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        # numpy knows no bfloat16, but every type has bytes.
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_sight(
    model: PreTrainedModel, regions: RegionFiles | None, image_transform: ImageTransform | None = None
) -> None:
    """See that a model reads what the data shows it: images, or region features of one length.

    Raises:
        RecipeError: if it reads the other, features of another length, or a BLIP images of another size: it would
            take the positions of another grid for theirs.
    """
    source = getattr(model.config, "visual_source", None)
    kind = type(model).__name__
    if regions is None and source == "regions":
        raise RecipeError(
            f"{kind} reads region features (visual_source is regions), and the recipe has none. Give "
            f"data.regions.files, or a model that reads images."
        )
    if regions is None:
        shown = None if image_transform is None else image_transform.image_size
        size = model.config.vision_config.image_size if model.config.model_type == "blip" else None
        if size is not None and shown not in (None, (size, size)):
            raise RecipeError(
                f"{kind} reads images of {size} x {size} pixels, and they are made {shown[0]} x {shown[1]}. Give a "
                f"checkpoint of that size, or one image size for teacher and student."
            )
        return
    if source != "regions":
        raise RecipeError(
            f"the recipe has data.regions, and {kind} reads images. Leave data.regions out, or give a VL-T5 "
            f"whose visual_source is regions."
        )
    if model.config.feat_dim != regions.n_features:
        raise RecipeError(
            f"data.regions.n_features is {regions.n_features}, and {kind} reads features of length "
            f"{model.config.feat_dim}. Give the features that the model was made for, or set its feat_dim."
        )


def check_same_words(student: str, teacher: PreTrainedTokenizerBase) -> None:
    """See that a student's checkpoint numbers words as its teacher does; one without a tokenizer is taken on trust.

    Raises:
        ShapeError: if a word has another number, or is in only one of the vocabularies.
    """
    if not any((Path(student) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return
    ours, theirs = load_tokenizer(student).get_vocab(), teacher.get_vocab()
    differing = sorted(word for word in ours.keys() | theirs.keys() if ours.get(word) != theirs.get(word))
    if differing:
        word = differing[0]
        raise ShapeError(
            f"student and teacher have different vocabularies: {word!r} is {_number(ours, word)} in student.path "
            f"{student} and {_number(theirs, word)} in the teacher's tokenizer ({len(differing)} words differ). "
            f"Give a student that shares the teacher's tokenizer."
        )


def _number(vocabulary: dict[str, int], word: str) -> str:
    return f"number {vocabulary[word]}" if word in vocabulary else "unknown"
