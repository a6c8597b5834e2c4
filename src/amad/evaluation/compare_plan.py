"""What a comparison compares: one recipe, several arms, the same seeds for all, a search of one grid for all.

It is a folder:

    OUT/compare.yaml             the comparison
    OUT/search/ARM/trial-0.yaml  one trial, a recipe; trial-0/ is its run
    OUT/runs/ARM/seed-0.yaml     one run that is reported; seed-0/ is its folder
"""

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from amad.errors import RecipeError
from amad.methods import METHODS, apply_method
from amad.recipe import KEYS_OF_METHOD, Recipe, with_overrides
from amad.recipe_data import CaptionFiles, Section, VqaFiles

MAIN_FIGURES: dict[str, tuple[str, int]] = {
    "vqa": ("accuracy", 2),
    "captions": ("CIDEr", 4),
    "translation": ("BLEU", 2),
}
"""Per task the figure that is compared, higher is better, and its decimals."""

_SEED = "{seed}"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+=_-]*")


class Arm(Section):
    """One thing that is compared.

    Attributes:
        label: Its name in tables and folders.
        method: A method of ``amad.methods``.
        overrides: ``key=value`` on top of it.
    """

    label: str
    method: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, as ``amad train`` or ``amad distill`` makes it.

    Attributes:
        arm: What it is a run of.
        seed: Its seed.
        setting: What was searched, as overrides.
        recipe: What is run.
        trial: Its number in the search; None for a run that is reported.
    """

    arm: Arm
    seed: int
    setting: tuple[str, ...]
    recipe: Recipe
    trial: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.arm.label}, " + (f"seed {self.seed}" if self.trial is None else f"trial {self.trial}")

    @property
    def folder(self) -> Path:
        """Where it runs."""
        return Path(self.recipe.output)

    @property
    def recipe_file(self) -> Path:
        """Where its recipe is."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def distils(self) -> bool:
        """Whether its objective asks for the teacher; without, it is a run of ``amad train``."""
        terms = self.recipe.objective
        return any(getattr(terms, name) is not None for name in type(terms).model_fields if name != "task")


class Comparison(Section):
    """A comparison.

    Attributes:
        recipe: What all arms begin from. With ``{seed}`` in its teacher's path, each seed has a teacher of its own.
        arms: What is compared.
        n_seeds: Every arm runs with the seeds 0 to ``n_seeds - 1``.
        baseline: Label of the arm that the others are compared with.
        search: Values to try, per key.
        search_seed: Seed of all trials.
        report: Overrides that name the data to report on.
    """

    recipe: Recipe
    arms: tuple[Arm, ...]
    n_seeds: int = Field(ge=1)
    baseline: str
    search: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    search_seed: int = Field(100, ge=0)
    report: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _rules(self) -> "Comparison":
        if self.recipe.task not in MAIN_FIGURES:
            raise RecipeError(
                f"task {self.recipe.task!r} has no one figure to compare; {', '.join(MAIN_FIGURES)} have. Compare on "
                f"the task that it prepares for."
            )
        labels = [arm.label for arm in self.arms]
        if len(labels) < 2:
            raise RecipeError(
                f"a comparison has two arms at least, and this one has {len(labels)}. Add some with --methods or --arm."
            )
        for label in labels:
            if not _LABEL.fullmatch(label):
                raise RecipeError(
                    f"the label {label!r} must be fit to name a folder: letters, digits, '.', '+', '=', '_' and '-', "
                    f"a letter or digit first. Give another."
                )
            if labels.count(label) > 1:
                raise RecipeError(f"two arms have the label {label!r}. Give each its own.")
        if self.baseline not in labels:
            raise RecipeError(f"the baseline {self.baseline!r} is none of the arms {', '.join(labels)}.")
        if self.search and self.search_seed < self.n_seeds:
            raise RecipeError(
                f"the search has seed {self.search_seed}, and seeds 0 to {self.n_seeds - 1} are reported. Give "
                f"--search-seed another, so that nothing is chosen by a run that is reported."
            )
        if not self.recipe.data.validates:
            raise RecipeError(
                f"a comparison needs something to validate on. Give {' or '.join(self.recipe.data.validation_keys)}."
            )
        self._check_report()
        # Every recipe of it is made once, and refused here if it breaks a rule.
        for arm in self.arms:
            for setting in self.settings(arm):
                self._check_budget(arm, self._recipe(arm, setting, 0, self.recipe.output))
                for seed in (0, 1):
                    teacher = self._recipe(arm, setting, seed, self.recipe.output).teacher
                    if teacher != self.teacher(seed):
                        raise RecipeError(
                            f"arm {arm.label!r} has the teacher {teacher}, and the comparison {self.teacher(seed)}: "
                            f"all arms learn from one. Make a comparison for each teacher."
                        )
        for key in self.search:
            if not any(self.keys(arm)[key] for arm in self.arms):
                raise RecipeError(
                    f"--search {key} applies to no arm: none of them has such a section. Give a key such as "
                    f"training.learning_rate, or weight for that of each method's own term."
                )
        return self

    def _check_budget(self, arm: Arm, recipe: Recipe) -> None:
        """All arms take as many steps over as many examples; what a run costs beside is its own."""
        given, own = (_budget(one) for one in (self.recipe, recipe))
        for key, value in own.items():
            if value != given[key]:
                raise RecipeError(
                    f"arm {arm.label!r} has {key} {value}, and the comparison {given[key]}: all arms have one budget. "
                    "Make a comparison for each."
                )

    def _check_report(self) -> None:
        """Nothing is reported on that was trained on: neither a training file, nor another holdout of its images."""
        data, reported = self.recipe.data, self.reported_recipe.data
        if not reported.validates:
            raise RecipeError(
                f"--report leaves nothing to report on: give {' or '.join(reported.validation_keys)} there, or leave "
                "--report out."
            )
        trained = [getattr(data, "train", None), *getattr(data, "also_train", [])]
        if _source(getattr(reported, "validation", None)) in [_source(files) for files in trained]:
            raise RecipeError(
                f"the comparison would report on what was trained on: data.validation is "
                f"{_source(getattr(reported, 'validation', None))}, and so is what is trained on. Name other data."
            )
        held, held_in_report = getattr(data, "holdout", None), getattr(reported, "holdout", None)
        if held_in_report is not None and held_in_report != held:
            raise RecipeError(
                f"--report holds out other images of data.train than the runs do: {held_in_report} instead of {held}, "
                f"so it would report on what was trained on. Give data.holdout=null and a data.validation of its own."
            )

    @property
    def reported_recipe(self) -> Recipe:
        """The recipe with the data to report on."""
        return with_overrides(self.recipe, self.report)

    @property
    def draws_other_data(self) -> bool:
        """Whether curves, which training draws of a part of what it validates on, are of other items than figures."""
        return bool(self.report) or self.recipe.data.whole() != self.recipe.data

    @property
    def n_comparisons(self) -> int:
        """Intervals that hold together: one per arm beside the baseline."""
        return len(self.arms) - 1

    @property
    def has_teachers(self) -> bool:
        """Whether each seed has a teacher of its own."""
        return _SEED in str(self.recipe.teacher)

    def teacher(self, seed: int) -> str:
        """The teacher of a seed."""
        return str(self.recipe.teacher).replace(_SEED, str(seed))

    def arm(self, label: str) -> Arm:
        """The arm of this label."""
        return next(arm for arm in self.arms if arm.label == label)

    def keys(self, arm: Arm) -> dict[str, list[str]]:
        """The keys of the recipe that each searched key stands for in this arm; none where it does not apply.

        ``weight`` is the weight of what the method adds; ``learning_rate`` is ``training.learning_rate``. What the
        arm sets itself is not searched.
        """
        recipe = self._recipe(arm, (), 0, self.recipe.output)
        own = [
            f"objective.{name}.weight"
            for name, change in METHODS[arm.method].changes.items()
            if change is not None
        ]
        names = {"weight": own, "learning_rate": ["training.learning_rate"]}
        without = {override.partition("=")[0].strip() for override in arm.overrides} | _unread(recipe)
        tree = recipe.model_dump(mode="json")
        return {
            key: [name for name in names.get(key, [key]) if _has_place(tree, name) and name not in without]
            for key in self.search
        }

    def settings(self, arm: Arm) -> list[tuple[str, ...]]:
        """What is tried for an arm: every combination of the values of the keys that apply to it."""
        keys = {key: names for key, names in self.keys(arm).items() if names}
        return [
            tuple(
                f"{name}={json.dumps(value)}"
                for key, value in zip(keys, values, strict=True)
                for name in keys[key]
            )
            for values in itertools.product(*(self.search[key] for key in keys))
        ]

    def trials(self, folder: Path, arm: Arm) -> list[PlannedRun]:
        """The runs that choose an arm's setting; none where there is nothing to choose."""
        settings = self.settings(arm)
        if len(settings) == 1:
            return []
        return [
            PlannedRun(
                arm,
                self.search_seed,
                setting,
                self._recipe(
                    arm, setting, self.search_seed, str(folder / "search" / arm.label / f"trial-{number}")
                ),
                number,
            )
            for number, setting in enumerate(settings)
        ]

    def runs(self, folder: Path, arm: Arm, setting: tuple[str, ...]) -> list[PlannedRun]:
        """The runs of an arm that are reported."""
        return [
            PlannedRun(
                arm,
                seed,
                setting,
                self._recipe(arm, setting, seed, str(folder / "runs" / arm.label / f"seed-{seed}")),
            )
            for seed in range(self.n_seeds)
        ]

    def _recipe(self, arm: Arm, setting: Sequence[str], seed: int, output: str) -> Recipe:
        try:
            recipe = with_overrides(apply_method(self.recipe, arm.method), [*arm.overrides, *setting])
        except RecipeError as error:
            raise RecipeError(f"arm {arm.label!r}: {error}") from None
        teacher = recipe.teacher and recipe.teacher.replace(_SEED, str(seed))
        return recipe.model_copy(update={"seed": seed, "output": output, "teacher": teacher})


def _budget(recipe: Recipe) -> dict[str, Any]:
    """What decides how many steps are taken and how many examples each sees, as far as the recipe says."""
    training = recipe.training
    sizes = [training.get("per_device_train_batch_size", 8), training.get("gradient_accumulation_steps", 1)]
    return {
        "training.max_steps": training.get("max_steps"),
        "training.num_train_epochs": training.get("num_train_epochs"),
        # Halves of a batch are as many examples as the whole.
        "a batch of": math.prod(sizes) if all(isinstance(size, int) for size in sizes) else sizes,
    }


def _unread(recipe: Recipe) -> set[str]:
    """Keys of the attention term that other methods than the recipe's read."""
    attention = recipe.objective.attention
    return {
        f"objective.attention.{key}"
        for method, keys in KEYS_OF_METHOD.items()
        for key in keys
        if attention is not None and attention.method != method
    }


def _source(files: VqaFiles | CaptionFiles | str | None) -> tuple[str, str | None] | None:
    """The file and the part of it that a split is; None for no split."""
    if isinstance(files, VqaFiles):
        return files.questions, None
    if isinstance(files, CaptionFiles):
        return files.captions, files.split
    return None if files is None else (files, None)


def _has_place(tree: dict[str, Any], key: str) -> bool:
    """Whether the sections that a dotted key is in are all there."""
    node: Any = tree
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    return isinstance(node, dict)
