"""What a comparison found: one document, from the files of its runs alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amad.errors import RecipeError
from amad.evaluation.compare_jobs import (
    TEACHER_FOLDER,
    VALIDATED_FOLDER,
    Choice,
    Remaining,
    choose,
    teacher_folder,
)
from amad.evaluation.compare_plan import MAIN_FIGURES, Arm, Comparison, PlannedRun
from amad.evaluation.compare_runs import (
    Reported,
    RunOutcome,
    check_budgets,
    check_same_data,
    check_same_teacher,
    differing_environments,
    differing_starts,
    examples_to,
    read_outcome,
    read_reported,
    run_state,
)
from amad.evaluation.predictions import digest_of_model
from amad.intervals import CONFIDENCE, half_width, paired_difference

TARGET_SHARE = 0.9
"""Share of the teacher's figure at which examples are counted."""


def summarise(comparison: Comparison, folder: Path, left: Remaining) -> dict[str, Any]:
    """The figures of every arm, and what they say.

    Args:
        comparison: The comparison.
        folder: Its folder.
        left: What is not done yet.

    Returns:
        ``figure`` (what is compared), ``decimals``, ``baseline``, ``n_seeds``, ``n_comparisons``, ``confidence``,
        ``teacher`` (its figure on the data that is reported; the mean where each seed has its own) and
        ``teacher_figures`` (per seed), ``examples`` and ``steps`` of every run,
        ``unfinished`` (number of runs), ``arms``, ``runs`` and ``notes``.

        An arm has its ``figures`` per seed, ``mean``, ``deviation``, ``share_of_teacher``, ``difference`` (mean, low,
        high) from the baseline, ``verdict`` (also ``baseline``, and ``unfinished`` while a run is missing),
        ``examples_to_90`` (the median over seeds; None if at least half did not reach 90 % of the teacher),
        ``n_targets`` (runs whose teacher's figure is known), ``n_reached`` (of them) and ``seconds`` (median).

    Raises:
        RecipeError: if budgets or the data that is reported on differ, or records are of another recipe.
        DataError: if a file of a run cannot be read.
    """
    figure, decimals = MAIN_FIGURES[comparison.recipe.task]
    task = comparison.recipe.task
    teachers = _teachers(comparison, folder, TEACHER_FOLDER)
    curve_teachers = (
        _teachers(comparison, folder, VALIDATED_FOLDER) if comparison.draws_other_data else teachers
    )
    compared = {
        f"the teacher of seed {seed}" if comparison.has_teachers else "the teacher": found
        for seed, found in teachers.items()
    }
    choices = {arm.label: choose(comparison, folder, arm) for arm in comparison.arms}
    outcomes: list[tuple[PlannedRun, RunOutcome]] = []
    reported: dict[str, dict[int, float]] = {arm.label: {} for arm in comparison.arms}
    for arm in comparison.arms:
        setting = choices[arm.label].setting
        for run in [] if setting is None else comparison.runs(folder, arm, setting):
            found = read_reported(run.folder, task)
            if found is not None and run_state(run) == "finished":
                outcomes.append((run, read_outcome(run)))
                reported[arm.label][run.seed] = found.value
                compared[run.name] = found
    check_budgets(outcomes)
    check_same_teacher(outcomes)
    check_same_data(compared)
    targets = {seed: TARGET_SHARE * found.value for seed, found in curve_teachers.items()}
    runs = [
        _run_row(run, outcome, reported[run.arm.label][run.seed], targets.get(run.seed))
        for run, outcome in outcomes
    ]
    n_done = len(runs)
    teacher_figures = {seed: found.value for seed, found in teachers.items()}
    return {
        "figure": figure,
        "decimals": decimals,
        "baseline": comparison.baseline,
        "n_seeds": comparison.n_seeds,
        "n_comparisons": comparison.n_comparisons,
        "confidence": CONFIDENCE,
        "teacher": _mean(list(teacher_figures.values())) if teacher_figures else None,
        "teacher_figures": {str(seed): value for seed, value in teacher_figures.items()},
        "examples": outcomes[0][1].examples if outcomes else None,
        "steps": outcomes[0][1].steps if outcomes else None,
        "unfinished": comparison.n_seeds * len(comparison.arms) - n_done,
        "arms": [
            _arm_row(
                comparison,
                arm,
                choices[arm.label],
                reported,
                runs,
                teacher_figures,
            )
            for arm in comparison.arms
        ],
        "runs": runs,
        "notes": _notes(comparison, choices, outcomes, left),
    }


def check_teachers(comparison: Comparison, folder: Path) -> None:
    """See that the teachers are still those whose figures the comparison has.

    Raises:
        RecipeError: naming one that changed.
        DataError: if a file of figures cannot be read.
    """
    found = _teachers(comparison, folder, TEACHER_FOLDER)
    for place, model in {comparison.teacher(seed): one.model for seed, one in found.items()}.items():
        now = digest_of_model(place)
        if model != now:
            raise RecipeError(
                f"the teacher in {place} changed since {folder} began: its files had the digest {model}, and have "
                f"{now} now. Put it back, or compare anew, in another folder with --out."
            )


def _teachers(comparison: Comparison, folder: Path, name: str) -> dict[int, Reported]:
    """What each seed's teacher was found to be, as far as it is known."""
    task = comparison.recipe.task
    found = {
        seed: read_reported(teacher_folder(comparison, folder, name, seed), task)
        for seed in range(comparison.n_seeds)
    }
    return {seed: reported for seed, reported in found.items() if reported is not None}


def _mean(values: Sequence[float]) -> float:
    """The mean; of equal values exactly that."""
    return values[0] if len(set(values)) == 1 else statistics.fmean(values)


def _run_row(run: PlannedRun, outcome: RunOutcome, value: float, target: float | None) -> dict[str, Any]:
    return {
        "arm": run.arm.label,
        "seed": run.seed,
        "value": value,
        "validated": outcome.validated,
        "examples": outcome.examples,
        "target": target,
        "examples_to_90": None if target is None else examples_to(outcome.curve, target),
        "seconds": outcome.seconds,
        "curve": [list(point) for point in outcome.curve],
        "folder": str(run.folder),
    }


def _arm_row(
    comparison: Comparison,
    arm: Arm,
    choice: Choice,
    reported: dict[str, dict[int, float]],
    runs: Sequence[dict[str, Any]],
    teachers: Mapping[int, float],
) -> dict[str, Any]:
    own, baseline = reported[arm.label], reported[comparison.baseline]
    own_runs = [run for run in runs if run["arm"] == arm.label]
    values = list(own.values())
    mean = statistics.fmean(values) if values else None
    known = [teachers[seed] for seed in own if seed in teachers]
    teacher = _mean(known) if known and len(known) == len(own) else None
    difference, verdict = None, "unfinished"
    if arm.label == comparison.baseline:
        verdict = "baseline"
    elif len(own) == len(baseline) == comparison.n_seeds:
        seeds = range(comparison.n_seeds)
        found = paired_difference(
            [own[seed] for seed in seeds],
            [baseline[seed] for seed in seeds],
            n_comparisons=comparison.n_comparisons,
        )
        difference = {"mean": found.mean, "deviation": found.deviation, "low": found.low, "high": found.high}
        verdict = found.verdict
    reached = [run["examples_to_90"] for run in own_runs if run["target"] is not None]
    seconds = [run["seconds"] for run in own_runs if run["seconds"] is not None]
    return {
        "label": arm.label,
        "method": arm.method,
        "overrides": list(arm.overrides),
        "setting": None if choice.setting is None else list(choice.setting),
        "trials": [{"setting": list(trial.setting), "validated": value} for trial, value in choice.trials],
        "figures": {str(seed): value for seed, value in own.items()},
        "mean": mean,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "share_of_teacher": mean / teacher if mean is not None and teacher else None,
        "difference": difference,
        "verdict": verdict,
        "examples_to_90": _median_or_never(reached),
        "n_targets": len(reached),
        "n_reached": sum(examples is not None for examples in reached),
        "seconds": statistics.median(seconds) if seconds else None,
    }


def _median_or_never(reached: Sequence[int | None]) -> int | None:
    """The median where a run that did not get there took for ever; the higher of two middle ones."""
    if not reached:
        return None
    median = statistics.median_high([math.inf if examples is None else examples for examples in reached])
    return None if math.isinf(median) else int(median)


def _notes(
    comparison: Comparison,
    choices: dict[str, Choice],
    outcomes: Sequence[tuple[PlannedRun, RunOutcome]],
    left: Remaining,
) -> list[str]:
    notes = []
    n, m = comparison.n_seeds, comparison.n_comparisons
    if n > 1:
        together = f", and all {m} hold together with that (Bonferroni)" if m > 1 else ""
        notes.append(
            f"Intervals: {100 * CONFIDENCE:.0f} %, paired over {n} seeds (Student's t){together}: "
            f"{half_width(n, m):.2f} standard deviations of the differences to either side. 'No difference' says that "
            f"none was shown."
        )
    else:
        notes.append("One seed gives no interval and no verdict.")
    if comparison.has_teachers:
        notes.append(
            "Each seed has a teacher of its own, so intervals are over teachers, too. The teacher's figure is the mean."
        )
    if outcomes:
        outcome = outcomes[0][1]
        notes.append(
            f"Every run: {outcome.steps:,} optimiser steps, {outcome.examples:,} examples. Equal examples are not "
            f"equal seconds, which are of training alone and depend on what else ran. Examples to 90 % of the "
            f"teacher are read off the evaluations while training. Both are medians over seeds."
        )
    if comparison.search:
        notes += _search_notes(comparison, choices)
    for label, other in differing_starts(outcomes):
        notes.append(
            f"{label} began with other weights than {other} for the same seed: their students differ."
        )
    for key, values in differing_environments([outcome for _, outcome in outcomes]).items():
        notes.append(f"Runs differ in {key}: {', '.join(map(str, values))}.")
    untimed = [run.name for run, outcome in outcomes if outcome.seconds is None]
    if untimed:
        notes.append(f"Went on after an interruption, and are left out of seconds: {'; '.join(untimed)}.")
    if left.running:
        notes.append(f"Being run now: {'; '.join(left.running)}.")
    return notes


def _search_notes(comparison: Comparison, choices: dict[str, Choice]) -> list[str]:
    keys = {arm.label: comparison.keys(arm) for arm in comparison.arms}
    counts = ", ".join(
        f"{label} {len(choice.trials) or 'no'} trial{'' if len(choice.trials) == 1 else 's'}"
        for label, choice in choices.items()
    )
    where = "the data of the recipe" if comparison.report else "the data that is reported here"
    notes = [
        f"Settings were chosen by the validation figure of seed {comparison.search_seed}, on {where}; tried: {counts}."
    ]
    for key in comparison.search:
        without = [label for label, found in keys.items() if not found[key]]
        if without:
            notes.append(f"{key} does not apply to {', '.join(without)}, which had fewer trials for that.")
    return notes
