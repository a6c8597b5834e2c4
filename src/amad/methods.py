"""Methods of distillation by name: what each changes in the objective of a recipe, and hardly anything else.

Two recipes that differ by their method alone are a fair comparison: same teacher, student, start, data, order and
budget, same weights of the terms. The pairing of layers stays as well, but for a method whose point it is.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from amad.errors import RecipeError
from amad.recipe import KEYS_OF_METHOD, PairingRule, Recipe, check_recipe


class Method(NamedTuple):
    """One method.

    Attributes:
        summary: What it does, in a few words.
        changes: Per section of the objective, the keys that it sets; None leaves the section out. What it does not
            set stays as the recipe has it, or takes its default where the recipe leaves the section out.
        pairing: The rule that pairs layers; that of the recipe when None.
    """

    summary: str
    changes: Mapping[str, Mapping[str, Any] | None]
    pairing: PairingRule | None = None


def _attention(summary: str, method: str, variant: str = "kl", **keys: Any) -> Method:
    return Method(summary, {"attention": {"method": method, "variant": variant, **keys}, "hidden": None})


_NOTHING_INSIDE: dict[str, None] = {"attention": None, "hidden": None}


METHODS: dict[str, Method] = {
    "none": Method("ground truth alone", {"logits": None, **_NOTHING_INSIDE}),
    "logits": Method("the teacher's predictions, nothing inside", {"logits": {}, **_NOTHING_INSIDE}),
    "logits-reverse": Method(
        "the teacher's predictions, reverse divergence",
        {"logits": {"divergence": "reverse_kl"}, **_NOTHING_INSIDE},
    ),
    "logits-jsd": Method(
        "the teacher's predictions, Jensen-Shannon", {"logits": {"divergence": "jsd"}, **_NOTHING_INSIDE}
    ),
    "hidden": Method(
        "hidden states through a trained projection, squared distance",
        {"attention": None, "hidden": {"loss": "mse"}},
    ),
    "hidden-cosine": Method(
        "hidden states through a trained projection, cosine",
        {"attention": None, "hidden": {"loss": "cosine"}},
    ),
    "tinybert": Method(
        "one_to_one-scores and hidden together",
        {"attention": {"method": "one_to_one", "variant": "scores"}, "hidden": {"loss": "mse"}},
    ),
    "amad": _attention("attention map alignment, divergence from the mixture of student heads", "amad"),
    "amad-mse": _attention("attention map alignment, squared distance of unit maps", "amad", "mse"),
    "amad-projected": _attention("attention map alignment, student maps projected", "amad", "projected"),
    "amad-token": _attention("attention map alignment, by query row", "amad", "token"),
    "amad-sharp": _attention(
        "amad at temperature 0.1, where the best head takes most", "amad", temperature=0.1
    ),
    "amad-important": _attention(
        "amad from the encoder layers that the teacher's task needs most", "amad"
    )._replace(pairing="important-encoder"),
    "amad-important-hidden": Method(
        "amad-important and hidden together",
        {"attention": {"method": "amad", "variant": "kl"}, "hidden": {"loss": "mse"}},
        "important-encoder",
    ),
    "one_to_one": _attention("teacher head k to student head k, divergence", "one_to_one"),
    "one_to_one-mse": _attention(
        "teacher head k to student head k, distance of unit maps", "one_to_one", "mse"
    ),
    "one_to_one-scores": _attention(
        "teacher head k to student head k, distance of scores before the softmax", "one_to_one", "scores"
    ),
    "mean": _attention("every teacher head to the mean of the student's, divergence", "mean"),
    "mean-mse": _attention("every teacher head to the mean of the student's, distance", "mean", "mse"),
    "nearest": _attention("every teacher head to its most alike student head, divergence", "nearest"),
    "nearest-mse": _attention(
        "every teacher head to its most alike student head, distance", "nearest", "mse"
    ),
    "assigned": _attention("one to one in the best order, divergence", "assigned"),
    "assigned-mse": _attention("one to one in the best order, distance", "assigned", "mse"),
    "head_mean": _attention("mean of the teacher's heads to mean of the student's, divergence", "head_mean"),
    "learned": _attention("a trained mixture of student heads for every teacher head, divergence", "learned"),
    "relations": _attention("relations of queries, keys and values in relation heads", "relations"),
    "squeezed": _attention("teacher heads merged to as many as the student's, one to one", "squeezed"),
    "learned-mse": _attention("a trained mixture for every teacher head, distance", "learned", "mse"),
}
"""Every method by the name that commands and tables have for it."""


def apply_method(recipe: Recipe, name: str) -> Recipe:
    """The same recipe with the objective of this method.

    The task term, weights and stacks stay, and so do the pairing, unless it is the method's, and what the recipe says
    of the same attention method. A recipe that leaves out the logits term gets none from a method that compares what
    is inside of the models, so that such methods differ by that alone.

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
        objective[section] = (
            None if change is None else {**_kept(section, objective[section], change), **change}
        )
    if METHODS[name].pairing is not None:
        tree["pairing"] = METHODS[name].pairing
    if name == "none" and objective["task"] is None:
        raise RecipeError(
            "method 'none' learns from the ground truth alone, but objective.task is null. Leave it out."
        )
    return check_recipe(tree, source=f"recipe with method {name!r}")


def _kept(section: str, before: Mapping[str, Any] | None, change: Mapping[str, Any]) -> dict[str, Any]:
    """What of a section still has a meaning."""
    kept = dict(before or {})
    if section == "attention":
        for method, keys in KEYS_OF_METHOD.items():
            if method != change["method"]:
                kept = {key: value for key, value in kept.items() if key not in keys}
    return kept
