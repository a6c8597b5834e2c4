"""The folder of a run: whether it may be written to, and where a run that was interrupted goes on."""

import json
import math
from pathlib import Path
from typing import Any

import yaml

from amad.errors import RecipeError
from amad.recipe import Recipe, first_difference
from amad.records import read_records

RECIPE_FILE = "recipe.yaml"
RECORDS_FILE = "records.jsonl"
BAD_EXAMPLES_FILE = "bad_examples.jsonl"
MODEL_FOLDER = "model"
CHECKPOINTS_FOLDER = "checkpoints"

_OF_THE_OPTIMIZER = ("optimizer.pt", "scheduler.pt")
# Kept in the first of them, so another value would be ignored.
_KEPT_BY_THE_OPTIMIZER = (
    "learning_rate",
    "weight_decay",
    "no_decay",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
)

# The trainer writes this file of a checkpoint last.
_LAST_FILE = "trainer_state.json"


def check_new(output: Path) -> None:
    """See that nothing is overwritten.

    Raises:
        RecipeError: if ``output`` is a file, or a folder with a file in it.
    """
    if output.exists() and not output.is_dir():
        raise RecipeError(
            f"output {output} is a file, and a run needs a folder. Give another with output=..."
        )
    # A run that was killed while it was being set up leaves empty folders.
    if any(not path.is_dir() for path in output.rglob("*")):
        raise RecipeError(
            f"output folder {output} is not empty, and nothing in it is overwritten. Give another with "
            f"output=..., remove it, or go on with --resume."
        )


def last_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint that is whole; None if there is none."""
    found = [
        folder
        for folder in (output / CHECKPOINTS_FOLDER).glob("checkpoint-*")
        if folder.name.removeprefix("checkpoint-").isdigit() and _is_whole(folder)
    ]
    return max(found, key=lambda folder: int(folder.name.removeprefix("checkpoint-")), default=None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether its last file was written to its end."""
    try:
        return isinstance(json.loads((checkpoint / _LAST_FILE).read_bytes()), dict)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False


def find_checkpoint(output: Path, recipe: Recipe, with_teacher: bool, n_processes: int = 1) -> Path | None:
    """Where the run in ``output`` goes on: None where it was interrupted before its first checkpoint.

    Raises:
        RecipeError: if no run is there, it is finished and left no checkpoint, or it is another one: it distilled
            where this one trains alone, its recipe differs in more than places and arguments of the trainer, or
            another number of processes shared its steps.
    """
    checkpoint = last_checkpoint(output)
    if checkpoint is None and not (output / RECIPE_FILE).is_file():
        raise RecipeError(f"{output} holds no run to resume. Start it without --resume.")
    records = output / RECORDS_FILE
    for record in read_records(records) if records.is_file() else []:
        if record["event"] == "recipe" and record.get("with_teacher") != with_teacher:
            here, there = ("distill", "train") if with_teacher else ("train", "distill")
            raise RecipeError(f"{output} is a run of amad {there}, not of amad {here}. Resume it with that.")
        if record["event"] == "environment" and record.get("processes", 1) != n_processes:
            raise RecipeError(
                f"{output} is a run of {record.get('processes', 1)} processes, and {n_processes} would go on with it "
                f"at another place of the data. Launch as many as before."
            )
        if record["event"] == "timing" and checkpoint is None:
            raise RecipeError(
                f"{output} holds a run that is finished, and no checkpoint to go on from. To be able to go on next "
                f"time, set training.save_strategy=steps and training.save_steps."
            )
    differing = first_difference(_learned(_stored(output)), _learned(recipe))
    if differing is not None:
        key, stored, given = differing
        raise RecipeError(
            f"{output / RECIPE_FILE} has {key} = {stored!r}, and the recipe to resume with has {given!r}. Resume with "
            "what the run began with, or start another with output=..."
        )
    if checkpoint is not None:
        lacking = [name for name in _OF_THE_OPTIMIZER if not (checkpoint / name).is_file()]
        if lacking:
            raise RecipeError(
                f"{checkpoint} has no {lacking[0]}, so the steps after it would begin with another state of the "
                f"optimizer. Start the run anew, with training.save_only_model left out."
            )
    return checkpoint


def check_teacher(output: Path, digest: str) -> None:
    """See that a run goes on with the weights of the teacher that it began with.

    Raises:
        RecipeError: with both digests.
    """
    for record in read_records(output / RECORDS_FILE):
        before = record.get("teacher", digest) if record["event"] == "seeds" else digest
        if before != digest:
            raise RecipeError(
                f"the run in {output} began with a teacher whose weights have the digest {before}, and those of its "
                f"teacher now have {digest}. Put the teacher back, or start another run with output=..."
            )


def _stored(output: Path) -> Recipe:
    try:
        return Recipe.model_validate(yaml.safe_load((output / RECIPE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            f"{output / RECIPE_FILE} of the run to resume cannot be read: {error}. Restore it."
        ) from None


def _learned(recipe: Recipe) -> dict[str, Any]:
    """What decides the result, without places, caches and arguments that may change on the way."""
    tree = recipe.model_dump(mode="json", exclude={"output", "training"})
    for key in ("root", "image_cache_gib"):
        tree["data"].pop(key)
    kept = {f"training.{key}": recipe.training.get(key) for key in _KEPT_BY_THE_OPTIMIZER}
    # Steps are counted, and with another number of examples each they would stand for others.
    usual = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
    per_step = math.prod(recipe.training.get(key, value) for key, value in usual.items())
    return tree | kept | {" x ".join(f"training.{key}" for key in usual): per_step}
