"""``amad evaluate --fidelity``: the teacher beside its student."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amad.cli.screen import FIGURE_TITLES, print_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from amad.data.images import ImageTransform
    from amad.recipe import Recipe

_TRUTH = {
    "vqa": "the most frequent answers",
    "captions": "the first caption of each image",
    "translation": "the translations by people",
}
_SAID = {"vqa": "answers", "captions": "captions", "translation": "translations"}


def load_teacher(
    run: "Recipe",
    student: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    transform: "ImageTransform | None",
) -> "PreTrainedModel":
    """The teacher of a recipe, which reads the batches of its student.

    Raises:
        RecipeError: if the recipe has none.
        ShapeError: if it reads other words or images of another size than the student.
        CheckpointError: if it cannot be loaded.
    """
    from amad.data.images import load_image_transform
    from amad.errors import RecipeError, ShapeError
    from amad.models.checkpoint import located
    from amad.models.load import load_model, load_tokenizer
    from amad.models.student import check_compatible

    if run.teacher is None:
        raise RecipeError(
            "--fidelity compares a student with its teacher, and the recipe names no teacher. Give one with "
            "teacher=CHECKPOINT."
        )
    home = located(run.teacher)
    teacher = load_model(home)
    check_compatible(student, teacher)
    if load_tokenizer(home).get_vocab() != tokenizer.get_vocab():
        raise ShapeError(
            f"--fidelity compares predictions word by word, and the tokenizers of the model and of its teacher {home} "
            "number their words differently. Name a model that shares the teacher's tokenizer."
        )
    if transform is not None:
        own, its = transform.settings, load_image_transform(home).settings
        differing = next((key for key in own if own[key] != its[key]), None)
        if differing is not None:
            raise ShapeError(
                f"--fidelity shows both models the same images, and the model's have {differing} {own[differing]}, "
                f"those of the teacher {home} {its[differing]}. Name a model that reads the teacher's."
            )
    return teacher


def print_fidelity(task: str, document: Mapping[str, Any], figures: Mapping[str, int]) -> None:
    """Two tables: how alike both models are, and how each does for itself."""
    found = document["fidelity"]
    low, high = found["agreement_interval_percent"]
    rows = [
        (
            f"{_SAID[task]} equal to the teacher's, to the letter",
            f"{found['agreement_percent']:.1f} % (95 % interval {low:.1f} to {high:.1f})",
            "higher is closer",
        )
    ]
    if found["n_tokens"]:
        rows += [
            (
                "most probable next token equal to the teacher's",
                f"{found['token_agreement_percent']:.1f} %",
                "higher is closer",
            ),
            (
                "KL(teacher || student) per token",
                f"{found['kl_nats_per_token']:.4f} nats",
                "lower is closer; 0: alike",
            ),
        ]
    print_table(
        f"Fidelity to the teacher {found['teacher']['model']}",
        ("what", "value", "reading"),
        rows,
        f"next tokens: {found['n_tokens']:,} of {_TRUTH[task]}, each predicted after the true ones before it"
        if found["n_tokens"]
        else "the validation set has no ground truth, so next tokens were not compared",
    )
    both = []
    for name, digits in figures.items():
        if document[name] is not None:
            scores = [one[name] for one in (document, found["teacher"])]
            both.append((FIGURE_TITLES[name], *(f"{score:.{digits}f}" for score in scores), ""))
    for kind, title in (("tokens", "next tokens"), ("answers", "whole answers")):
        of = [found["calibration"][who].get(kind) for who in ("student", "teacher")]
        if None in of:
            continue
        if kind == "tokens":
            both.append(
                (f"{title}: right (%)", *(f"{one['accuracy_percent']:.1f}" for one in of), "higher is better")
            )
        both += [
            (
                f"{title}: calibration error (percentage points)",
                *(f"{one['calibration_error_percent']:.1f}" for one in of),
                "lower is better",
            ),
            (
                f"{title}: confidence less accuracy (percentage points)",
                *(f"{one['overconfidence_percent']:+.1f}" for one in of),
                "nearer 0 is better; above 0: too sure",
            ),
        ]
    if both:
        print_table(
            "Each for itself",
            ("what", "student", "teacher", "reading"),
            both,
            "calibration error: mean gap between confidence and accuracy over 15 bins of confidence; of a few hundred "
            "items, chance alone makes some points of it",
        )
