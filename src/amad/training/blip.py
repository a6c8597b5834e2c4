"""BLIP in a run: which of its models a task has, made from nothing or checked, and its batches."""

from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from amad.data.blip_collate import BlipCollator
from amad.data.images import ImageTransform
from amad.data.pretraining_pairs import PairCollator
from amad.errors import RecipeError, ShapeError
from amad.models.blip_pretraining import BlipForPretraining, fine_tuned
from amad.models.blip_seq2seq import as_seq2seq
from amad.models.sizes import BLIP_INITIALIZER_RANGE
from amad.models.student import check_one_width
from amad.recipe import nearest_key
from amad.recipe_data import CaptionData, PretrainingData, RecipeData, VqaData

_LONGEST_REASON = 300
_PARTS = ("text_config", "vision_config")


def new_blip(
    values: dict[str, Any], tokenizer: PreTrainedTokenizerBase, data: RecipeData, seed: int
) -> PreTrainedModel:
    """BLIP for the task of this data with random weights, sized for a tokenizer.

    Args:
        values: ``model.config`` of a recipe without its ``model_type``.
        tokenizer: Gives the size of the vocabulary and the special tokens; it has BLIP's.
        data: The recipe's data.
        seed: Of the weights; the global random state is set to it.

    Raises:
        RecipeError: if BLIP has no such task, a key is unknown or a value is refused.
    """
    model_class = _model_class(data)
    _check_keys(values)
    sep = tokenizer.sep_token_id
    text = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sep,
        "sep_token_id": sep,
    }
    parts = {
        "text_config": (values.get("text_config") or {}) | text,
        "vision_config": {"initializer_range": BLIP_INITIALIZER_RANGE} | (values.get("vision_config") or {}),
    }
    try:
        config = BlipConfig(**(values | parts))
        if model_class is BlipForQuestionAnswering:
            check_one_width(config)
        set_seed(seed)
        model: PreTrainedModel = model_class(config)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise RecipeError(f"model.config makes no model: {reason} Correct the value.") from None
    return as_seq2seq(model)


def blip_collator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_transform: ImageTransform | None,
    data: RecipeData,
    pad_to_max: bool = False,
) -> BlipCollator:
    """What makes batches for a BLIP.

    Raises:
        RecipeError: if the model is for another task.
        ShapeError: if the tokenizer numbers the tokens otherwise than the model.
    """
    needed = _model_class(data)
    if not isinstance(model, needed):
        raise RecipeError(
            f"the task needs a {needed.__name__}, and the checkpoint is a {type(model).__name__}. Give one of that "
            "class."
        )
    collator: BlipCollator
    texts: Literal["questions", "captions"] = "questions" if isinstance(data, VqaData) else "captions"
    if isinstance(data, PretrainingData):
        collator = PairCollator(tokenizer, image_transform, data.max_input_tokens, data.max_target_tokens)
    else:
        collator = BlipCollator(
            tokenizer, texts, image_transform, data.max_input_tokens, data.max_target_tokens, pad_to_max
        )
    for name in ("bos_token_id", "sep_token_id", "pad_token_id"):
        ours, its = getattr(tokenizer, name), getattr(model.config.text_config, name)
        if ours != its:
            raise ShapeError(
                f"{name} is {ours} in the tokenizer and {its} in the model's text_config. Give the tokenizer that the "
                "model was trained with."
            )
    return collator


def check_blip_task(data: RecipeData) -> None:
    """See that BLIP has a model for a task.

    Raises:
        RecipeError: if it has none.
    """
    _model_class(data)


def fitted(model: PreTrainedModel, data: RecipeData) -> PreTrainedModel:
    """The model itself; of a BLIP that was pre-trained, the parts that another task has, as the model of that task."""
    if not isinstance(model, BlipForPretraining) or isinstance(data, PretrainingData):
        return model
    return fine_tuned(model, _model_class(data))


def _model_class(data: RecipeData) -> type[PreTrainedModel]:
    if isinstance(data, VqaData):
        return BlipForQuestionAnswering  # type: ignore[no-any-return]
    if isinstance(data, CaptionData):
        return BlipForConditionalGeneration  # type: ignore[no-any-return]
    if isinstance(data, PretrainingData) and data.learns_pairs:
        return BlipForPretraining
    raise RecipeError(
        "BLIP answers questions and captions images, and is pre-trained with data.tasks contrast, match and caption. "
        "Give another model, or one of these tasks."
    )


def _check_keys(values: dict[str, Any]) -> None:
    """See that every key is one of the configuration or of its two parts."""
    default = BlipConfig()
    for part, of in (("", default), *((f"{name}.", getattr(default, name)) for name in _PARTS)):
        given = values.get(part[:-1]) if part else values
        if given is None:
            continue
        if not isinstance(given, dict):
            raise RecipeError(f"model.config.{part[:-1]} is {given!r}, and it is a mapping of sizes.")
        for key in given:
            if not hasattr(of, key):
                known = [name for name in vars(of) if not name.startswith("_")]
                raise RecipeError(f"unknown key 'model.config.{part}{key}': {nearest_key(key, known)}")
