"""Runs of one method, and what can be said of the method from them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amad.intervals import Interval, mean_interval, paired_difference
from amad.report.run import Run

# What changes no result, or is told otherwise.
_PLACES = ("output", "seed")
DATA_PLACES = ("root", "image_cache_gib")
_TRAINING_HABITS = (
    "logging_", "eval_", "save_", "report_to", "dataloader_", "disable_tqdm", "use_cpu", "per_device_eval",
    "predict_with_generate", "generation_max_length", "log_", "check_capture",
)  # fmt: skip
# What the words for a method say already.
_IN_THE_METHOD = ("method", "objective.attention.method", "objective.attention.variant")
_OF_THE_TEACHER = ("teacher", "pairing")


@dataclass
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        name: Of the method, with the settings that tell it from others of the same kind.
        runs: In the order in which they were named.
        is_teacher: Whether the others learned from it.
    """

    name: str
    runs: list[Run]
    is_teacher: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether a comparison compares its others with it."""
        return all(run.arm is not None and run.arm.is_baseline for run in self.runs)

    def curve(self) -> list[tuple[int, Interval]]:
        """Examples seen and the score over the runs, where every run that went so far was scored."""
        values: dict[int, list[float]] = {}
        for run in self.runs:
            for _, examples, value in run.curve:
                values.setdefault(examples, []).append(value)
        most = max((len(found) for found in values.values()), default=0)
        return [
            (examples, mean_interval(values[examples]))
            for examples in sorted(values)
            if len(values[examples]) == most
        ]

    def score(self) -> Interval | None:
        """The score at the end of those that ended, or the last of all if none did; None if no run has one."""
        ended = [run for run in self.runs if run.ended]
        scores = [run.score for run in ended or self.runs if run.score is not None]
        return mean_interval(scores) if scores else None


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Runs by method, in the order in which the methods first appear; baselines of comparisons before them.

    Arms of comparisons are called what their comparison calls them.
    """
    arms: dict[tuple[Path, str], list[Run]] = {}
    for run in runs:
        if run.arm is not None:
            arms.setdefault((run.arm.comparison, run.arm.label), []).append(run)
    several = len({comparison for comparison, _ in arms}) > 1
    named = [
        Group(f"{comparison.name}: {label}" if several else label, of_arm)
        for (comparison, label), of_arm in arms.items()
    ]
    found = [*named, *_by_settings([run for run in runs if run.arm is None], have_own_teachers(runs))]
    first = {id(run): number for number, run in enumerate(runs)}
    return sorted(found, key=lambda group: (not group.is_baseline, first[id(group.runs[0])]))


def _by_settings(runs: Sequence[Run], own_teachers: bool) -> list[Group]:
    groups: dict[str, list[Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        found = _settings(run)
        if own_teachers:
            found.pop("teacher", None)
        key = repr(sorted(found.items(), key=str))
        groups.setdefault(key, []).append(run)
        settings[key] = found
    return [
        Group(_name(groups[key][0], settings[key], [settings[one] for one in groups]), groups[key])
        for key in groups
    ]


def have_own_teachers(runs: Sequence[Run]) -> bool:
    """Whether there are several teachers whose places differ in the seed alone: then each belongs to its seed."""
    pairs = {
        (str(run.recipe.get("seed")), str(run.recipe["teacher"])) for run in runs if run.recipe.get("teacher")
    }
    if len({teacher for _, teacher in pairs}) != len(pairs) or len(pairs) < 2:
        return False
    return bool(set.intersection(*(_without_seed(seed, teacher) for seed, teacher in pairs)))


def _without_seed(seed: str, place: str) -> set[str]:
    """The place with ``{seed}`` for the seed's number, wherever it may stand for it."""
    number = re.compile(rf"(?<!\d){re.escape(seed)}(?!\d)")
    once = {f"{place[: found.start()]}{{seed}}{place[found.end() :]}" for found in number.finditer(place)}
    return once | {number.sub("{seed}", place)}


def paired_differences(groups: Sequence[Group]) -> list[tuple[Group, Group, Interval]]:
    """Of every method the score less that of the first one, seed by seed where they share any.

    All intervals hold together with at least 95 %.
    """
    found = [
        (first, second, differences)
        for first in groups[:1]
        for second in groups[1:]
        if (differences := _differences(first, second))
    ]
    return [(first, second, _interval(*differences, len(found))) for first, second, differences in found]


def _interval(values: Sequence[float], baseline: Sequence[float], n_comparisons: int) -> Interval:
    found = paired_difference(values, baseline, n_comparisons=n_comparisons)
    known = found.verdict != "not enough seeds"
    return Interval(found.mean, found.low if known else None, found.high if known else None, found.n)


def _differences(first: Group, second: Group) -> tuple[list[float], list[float]] | None:
    """Scores of the second and of the first for the seeds that ended with both; None if there are none."""
    before, after = (
        {run.recipe.get("seed"): run.score for run in group.runs if run.ended and run.score is not None}
        for group in (first, second)
    )
    shared = [seed for seed in before if seed in after]
    return ([after[seed] for seed in shared], [before[seed] for seed in shared]) if shared else None


def kind(run: Run) -> str:
    """The method in words."""
    if not run.with_teacher:
        return "ground truth alone" if run.recipe.get("teacher") else "trained alone"
    objective = run.recipe.get("objective") or {}
    attention, hidden = objective.get("attention"), objective.get("hidden")
    inside = []
    if attention and attention.get("weight"):
        method = str(attention.get("method", "amad"))
        named = "AMAD" if method == "amad" else method.replace("_", " ")
        inside.append(f"{named} {attention.get('variant', '')}".strip())
    if hidden and hidden.get("weight"):
        inside.append("hidden states")
    return " and ".join(inside) or "predictions alone"


def _name(run: Run, own: Mapping[str, Any], everyone: Sequence[Mapping[str, Any]]) -> str:
    like = [other for other in everyone if other["method"] == own["method"]]
    # What most have in common goes without saying, among all methods that have it and among those of the same kind.
    differing = [
        key
        for key in own
        if key not in _IN_THE_METHOD and any(_is_rare(key, own[key], among) for among in (like, everyone))
    ]
    varying = {
        key
        for other in like
        for key in other
        if any(key not in one or one[key] != other[key] for one in like)
    } | set(differing)
    parts = []
    for key in differing:
        last = key.rpartition(".")[2]
        alike = sum(other.rpartition(".")[2] == last for other in varying)
        parts.append(f"{key if alike > 1 else last} {own[key]}")
    return ", ".join([str(own["method"]), *parts])


def _settings(run: Run) -> dict[str, Any]:
    """What decides the result but for the seed, flat: ``{"training.learning_rate": 0.001, ...}``."""
    tree = {key: value for key, value in run.recipe.items() if key not in _PLACES}
    if not run.with_teacher:
        tree = {key: value for key, value in tree.items() if key not in _OF_THE_TEACHER}
        tree["objective"] = {"task": (tree.get("objective") or {}).get("task")}
    tree["data"] = {key: value for key, value in (tree.get("data") or {}).items() if key not in DATA_PLACES}
    tree["training"] = {
        key: value
        for key, value in (tree.get("training") or {}).items()
        if not key.startswith(_TRAINING_HABITS)
    }
    return {"method": kind(run)} | dict(_flat(tree, ""))


def _flat(tree: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat


def _is_rare(key: str, value: Any, among: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no more than half of those that have the key have this value."""
    values = [one[key] for one in among if key in one]
    return 2 * values.count(value) <= len(values)
