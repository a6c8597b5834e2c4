"""The values of a recipe's ``training`` section, checked against the types of the trainer's arguments."""

from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from amad.errors import RecipeError
from amad.training.arguments import DistillationArguments

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def checked_values(given: dict[str, Any]) -> dict[str, Any]:
    """The same values, as numbers where numbers belong; unknown keys are left to ``make_arguments``.

    Hugging Face takes values of any type and fails much later.

    Raises:
        RecipeError: if a value is of another type than its argument, or a size is below one.
    """
    return {key: _checked(key, value) for key, value in given.items()}


def _checked(key: str, value: Any) -> Any:
    types = _types()
    # YAML reads a bare ``no`` as false.
    if key not in types or (value is False and key.endswith("_strategy")):
        return value
    try:
        checked = TypeAdapter(types[key]).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise RecipeError(
            f"training.{key} = {value!r}: {reason[0].lower()}{reason[1:]}. Correct the value."
        ) from None
    if key in _AT_LEAST_ONE and checked < 1:
        raise RecipeError(f"training.{key} must be at least 1 and is {value}. Give a larger number.")
    return checked


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(DistillationArguments)
