"""Methods of distillation by name: what each changes in the objective of a recipe, and nothing else.

Two recipes that differ by their method alone are a fair comparison: same teacher, student, start, data, order and
budget, same weights of the terms.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from amad.errors import RecipeError
from amad.recipe import Recipe, check_recipe


class Method(NamedTuple):
    """One method.

    Attributes:
        summary: What it does, in a few words.
        changes: Per section of the objective, the keys that it sets; None leaves the section out. What it does not
            set stays as the recipe has it, or takes its default where the recipe leaves the section out.
    """

    summary: str
    changes: Mapping[str, Mapping[str, Any] | None]


METHODS: dict[str, Method] = {
    "none": Method("ground truth alone", {"logits": None, "attention": None}),
    "logits": Method("the teacher's predictions, no attention", {"logits": {}, "attention": None}),
    "amad": Method(
        "attention map alignment, divergence from the mixture of heads", {"attention": {"variant": "kl"}}
    ),
    "amad-mse": Method(
        "attention map alignment, squared distance of unit maps", {"attention": {"variant": "mse"}}
    ),
    "amad-projected": Method(
        "attention map alignment of trained projections of maps", {"attention": {"variant": "projected"}}
    ),
    "amad-token": Method("an alignment for each query row", {"attention": {"variant": "token"}}),
    "amad-sharp": Method(
        "amad at temperature 0.1, where the best head takes nearly all",
        {"attention": {"variant": "kl", "temperature": 0.1}},
    ),
}
"""Every method by the name that commands and tables have for it."""


def apply_method(recipe: Recipe, name: str) -> Recipe:
    """The same recipe with the objective of this method.

    The task term, weights, stacks and pairing stay. A recipe that leaves out the logits term gets none from an
    attention method, so that methods differ in their attention term alone.

    Raises:
        RecipeError: if there is no such method, or the recipe lacks what it needs: a teacher and a student, or for
            ``none`` a task term.
    """
    if name not in METHODS:
        raise RecipeError(f"method {name!r} is none of {', '.join(METHODS)}.")
    if not recipe.distils:
        raise RecipeError(
            f"method {name!r} is about a teacher and a student, and the recipe lacks one of them. Add both."
        )
    tree = recipe.model_dump(mode="json")
    objective = tree["objective"]
    for section, change in METHODS[name].changes.items():
        objective[section] = None if change is None else {**(objective[section] or {}), **change}
    if name == "none" and objective["task"] is None:
        raise RecipeError(
            "method 'none' learns from the ground truth alone, but objective.task is null. Leave it out."
        )
    return check_recipe(tree, source=f"recipe with method {name!r}")
