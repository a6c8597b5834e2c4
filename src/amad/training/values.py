"""The values of a recipe's ``training`` section, checked against the types of the trainer's arguments."""

import math
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from amad.errors import RecipeError
from amad.recipe import Recipe
from amad.training.arguments import NOT_IN_RECIPES, DistillationArguments

_AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "generation_num_beams",
    "eval_accumulation_steps",
)
_FINITE = ("learning_rate", "weight_decay", "max_grad_norm", "dataloader_num_workers")


def decoding_values(recipe: Recipe) -> dict[str, int]:
    """``generation_max_length``, ``generation_num_beams`` and ``generation_min_length`` of the recipe's ``training``.

    Where it does not say, texts are as long as ``data.max_target_tokens`` lets targets be, after the start token, and
    may end at once, and decoding is greedy, whatever a checkpoint's own generation_config.json says.

    Raises:
        RecipeError: if a value is no number, or leaves no room for a text.
    """
    values = {
        "generation_max_length": recipe.data.max_target_tokens + 1,
        "generation_num_beams": 1,
        "generation_min_length": 0,
    }
    for key in values:
        given = _checked(key, recipe.training.get(key))
        values[key] = values[key] if given is None else given
    if values["generation_max_length"] < 2:
        raise RecipeError(
            f"training.generation_max_length must be at least 2 and is {values['generation_max_length']}: the start "
            "token counts. Give a larger number."
        )
    if not 0 <= values["generation_min_length"] <= values["generation_max_length"]:
        raise RecipeError(
            f"training.generation_min_length must be from 0 to generation_max_length, "
            f"{values['generation_max_length']}, and is {values['generation_min_length']}. Give another number."
        )
    return values


def checked_values(given: dict[str, Any]) -> dict[str, Any]:
    """The same values, as numbers where numbers belong; unknown keys are left to ``make_arguments``.

    Hugging Face takes values of any type and fails much later.

    Raises:
        RecipeError: if a value is of another type than its argument, or a size is below one.
    """
    checked = {key: _checked(key, value) for key, value in given.items()}
    steps, epochs = checked.get("max_steps"), checked.get("num_train_epochs")
    if steps is not None and steps != -1 and steps < 1:
        raise RecipeError(
            f"training.max_steps must be at least 1 and is {steps}. Give a larger number, or leave it out and give "
            "num_train_epochs."
        )
    if epochs is not None and not 0 < epochs < math.inf and steps in (None, -1):
        raise RecipeError(f"training.num_train_epochs must be above 0 and is {epochs}. Give a larger number.")
    for key in _FINITE:
        value = checked.get(key)
        if value is not None and not 0 <= value < math.inf:
            raise RecipeError(
                f"training.{key} must be finite, not below 0, and is {value}. Give another number."
            )
    if checked.get("load_best_model_at_end") and checked.get("eval_strategy", "no") in ("no", False):
        raise RecipeError(
            "training.load_best_model_at_end needs evaluations to choose by, and training.eval_strategy is no. Give "
            "eval_strategy steps or epoch, or leave it out."
        )
    return checked


def _checked(key: str, value: Any) -> Any:
    types = _types()
    # YAML reads a bare ``no`` as false.
    if key not in types or key in NOT_IN_RECIPES or (value is False and key.endswith("_strategy")):
        return value
    try:
        checked = TypeAdapter(types[key]).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise RecipeError(
            f"training.{key} = {value!r}: {reason[0].lower()}{reason[1:]}. Correct the value."
        ) from None
    if key in _AT_LEAST_ONE and checked is not None and checked < 1:
        raise RecipeError(f"training.{key} must be at least 1 and is {value}. Give a larger number.")
    return checked


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(DistillationArguments)
