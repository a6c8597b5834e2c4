"""What the runs of a comparison left behind, and whether they may be compared."""

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amad.errors import DataError, RecipeError
from amad.evaluation.compare_plan import MAIN_FIGURES, PlannedRun
from amad.recipe import Recipe, check_recipe
from amad.records import is_written, read_records

RECORDS_FILE = "records.jsonl"
METRICS_FILE = "results.metrics.json"
"""What ``amad evaluate`` leaves beside the official result file."""

State = Literal["new", "running", "interrupted", "finished"]


@dataclass(frozen=True)
class RunOutcome:
    """What one finished run left.

    Attributes:
        validated: The main figure of its last evaluation while it ran.
        steps: Optimiser steps.
        examples: Training examples seen.
        seconds: Seconds of training; None where the run was interrupted, as only the last part was timed.
        start: Digest of the weights that it began with.
        teacher: Digest of the weights that it learned from; None without a teacher, and of earlier versions.
        environment: Versions, commit, device.
        curve: Examples seen and main figure of every evaluation.
    """

    validated: float
    steps: int
    examples: int
    seconds: float | None
    start: str | None
    teacher: str | None
    environment: dict[str, Any]
    curve: tuple[tuple[int, float], ...]


def run_state(run: PlannedRun) -> State:
    """How far a run is: ``finished`` once its last figures are in its records.

    Raises:
        DataError: if its records cannot be read.
    """
    records = run.folder / RECORDS_FILE
    if is_written(records):
        return "running"
    if any(record.get("final") for record in _last_records(records)):
        return "finished"
    if records.is_file() and any(record.get("final") for record in read_records(records)):
        return "finished"
    began = any(not path.is_dir() for path in run.folder.rglob("*"))
    return "interrupted" if began else "new"


def last_step(run: PlannedRun) -> int:
    """The last optimiser step in the last lines of a run's records; 0 if there is none."""
    steps = [record["step"] for record in _last_records(run.folder / RECORDS_FILE) if "step" in record]
    return int(steps[-1]) if steps else 0


# Enough for the alignment of every pair at one step.
_TAIL_BYTES = 1 << 18


def _last_records(path: Path) -> list[dict[str, Any]]:
    """The records at the end of a file, also while a run writes it."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        # The first may have lost its beginning, the last may lack its end.
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            found += [record] if isinstance(record, dict) else []
    return found


def read_outcome(run: PlannedRun) -> RunOutcome:
    """What a finished run left.

    Raises:
        RecipeError: if its records are of another recipe than the comparison has for it, or it learned from other
            weights after an interruption than before.
        DataError: if its records cannot be read, or lack what a finished run writes.
    """
    figure, _ = MAIN_FIGURES[run.recipe.task]
    path = run.folder / RECORDS_FILE
    # Of a run that went on after an interruption, the last of each event counts.
    found: dict[str, dict[str, Any]] = {}
    curve: dict[int, tuple[int, float]] = {}
    steps, resumed = 0, False
    teachers: set[str] = set()
    for record in read_records(path):
        found["final" if record.get("final") else record["event"]] = record
        resumed = resumed or record.get("resumed_from", "the start") != "the start"
        teachers |= {record["teacher"]} if record["event"] == "seeds" and "teacher" in record else set()
        steps = max(steps, record.get("step", 0))
        if f"eval_{figure}" in record:
            point = (record["examples"], float(record[f"eval_{figure}"]))
            # At the end the best model is evaluated, which may be of an earlier step.
            if not (run.recipe.training.get("load_best_model_at_end") and record["step"] in curve):
                curve[record["step"]] = point
    for event in ("recipe", "environment", "seeds", "timing", "final"):
        if event not in found:
            raise DataError(f"{path} has no {event}, so its run is not finished. Run it again.")
    _check_recipe(run, found["recipe"]["recipe"], path)
    if len(teachers) > 1:
        raise RecipeError(
            f"{path}: the run learned from different weights before and after an interruption: the teacher in "
            f"{run.recipe.teacher} changed in between. Move {run.folder} away, so that it is run again."
        )
    return RunOutcome(
        validated=float(found["final"][figure]),
        steps=steps,
        examples=found["timing"]["examples_seen"],
        seconds=None if resumed else found["timing"]["train_seconds"],
        start=found["seeds"].get("start"),
        teacher=found["seeds"].get("teacher"),
        environment={
            key: value
            for key, value in found["environment"].items()
            if key not in ("schema", "event", "time")
        },
        curve=tuple(curve[step] for step in sorted(curve)),
    )


@dataclass(frozen=True)
class Reported:
    """What ``amad evaluate`` found.

    Attributes:
        value: The main figure.
        data: Digest of the items that it is of.
        model: Digest of the checkpoint that it is of.
    """

    value: float
    data: str
    model: str


def read_reported(folder: Path, task: str) -> Reported | None:
    """What ``amad evaluate`` found for what is in this folder; None if it did not run yet.

    Raises:
        DataError: if its file cannot be read or has no main figure.
    """
    path, (figure, _) = folder / METRICS_FILE, MAIN_FIGURES[task]
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        value, digests = document[figure], document["digests"]
        data, model = str(digests["data"]), str(digests["model"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not what amad evaluate writes ({error}). Remove it, so that it is made again."
        ) from None
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{path} has {figure} = {value!r}: there is nothing to score against. Name other data."
        )
    return Reported(float(value), data, model)


def check_same_data(reported: Mapping[str, Reported]) -> None:
    """See that all figures, by the name of what they are of, are of the same items.

    Raises:
        RecipeError: naming two that differ.
    """
    seen: dict[str, str] = {}
    for name, one in reported.items():
        seen.setdefault(one.data, name)
    if len(seen) > 1:
        first, second = list(seen.values())[:2]
        raise RecipeError(
            f"{first} and {second} were evaluated on different data: the files changed in between. Remove the older "
            f"{METRICS_FILE}, so that it is made again."
        )


def check_budgets(outcomes: Sequence[tuple[PlannedRun, RunOutcome]]) -> None:
    """See that every run had the same steps and saw the same number of examples.

    Raises:
        RecipeError: naming two runs that differ.
    """
    for what, key in (("examples", "examples"), ("optimiser steps", "steps")):
        seen: dict[int, PlannedRun] = {}
        for run, outcome in outcomes:
            seen.setdefault(getattr(outcome, key), run)
        if len(seen) > 1:
            (first, one), (second, other) = list(seen.items())[:2]
            raise RecipeError(
                f"budgets differ: {one.name} had {first:,} {what}, and {other.name} had {second:,}. Only runs of one "
                f"budget are compared: leave data, batch size and number of steps as the recipe has them."
            )


def check_same_teacher(outcomes: Sequence[tuple[PlannedRun, RunOutcome]]) -> None:
    """See that all that learned from one teacher learned from the same weights.

    Raises:
        RecipeError: naming two runs that differ.
    """
    first: dict[str | None, tuple[str, PlannedRun]] = {}
    for run, outcome in outcomes:
        if outcome.teacher is None:
            continue
        weights, one = first.setdefault(run.recipe.teacher, (outcome.teacher, run))
        if weights != outcome.teacher:
            raise RecipeError(
                f"{one.name} and {run.name} learned from different weights: the teacher in {run.recipe.teacher} "
                "changed in between. Compare anew, in another folder with --out."
            )


def differing_starts(outcomes: Sequence[tuple[PlannedRun, RunOutcome]]) -> list[tuple[str, str]]:
    """Labels of arms, and of the first arm, whose runs of one seed began with other weights."""
    first: dict[int, tuple[str, str | None]] = {}
    found = []
    for run, outcome in outcomes:
        label, start = first.setdefault(run.seed, (run.arm.label, outcome.start))
        if start != outcome.start:
            found.append((run.arm.label, label))
    return list(dict.fromkeys(found))


def differing_environments(outcomes: Sequence[RunOutcome]) -> dict[str, list[Any]]:
    """What was not the same for all runs, with the values that it had."""
    values: dict[str, list[Any]] = {}
    for outcome in outcomes:
        for key, value in outcome.environment.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return {key: several for key, several in values.items() if len(several) > 1}


def examples_to(curve: Sequence[tuple[int, float]], target: float) -> int | None:
    """Examples seen at the first evaluation that reached the target; None if none did."""
    return next((examples for examples, value in curve if value >= target), None)


def _check_recipe(run: PlannedRun, stored: dict[str, Any], path: Path) -> None:
    if _decides(check_recipe(stored, source=str(path))) != _decides(run.recipe):
        raise RecipeError(
            f"{path} is of another recipe than {run.recipe_file}. Move {run.folder} away, so that it is run again."
        )


def _decides(recipe: Recipe) -> dict[str, Any]:
    """A recipe without its places."""
    tree = recipe.model_dump(mode="json", exclude={"output"})
    for key in ("root", "image_cache_gib"):
        tree["data"].pop(key)
    return tree
