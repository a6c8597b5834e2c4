"""What the page shows, as one JSON document."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median_high
from typing import Any

from amad.errors import DataError
from amad.intervals import Interval, mean_interval
from amad.report.examples import read_examples
from amad.report.groups import DATA_PLACES, Group, group_runs, have_own_teachers, paired_differences
from amad.report.run import ALIGNMENT_FIGURES, SCORES, Place, Run
from amad.report.thinning import evenly

MOST_WEIGHTS = 1_000_000
"""Alignment weights of one run on the page, at most; there are fewer steps where there are more pairs or heads."""

TARGET_SHARE = 0.9

AFTERWARDS = (
    "amad train and amad distill do that when they end; for earlier runs, amad report RUN --examples does."
)


def build_document(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """Everything that the page shows; what a run has not recorded is None or empty.

    Args:
        runs: Of one task.
        title: Of the page.

    Raises:
        DataError: if the runs are of different tasks.
    """
    tasks = {run.task: run for run in runs}
    if len(tasks) > 1:
        (one, first), (other, second) = list(tasks.items())[:2]
        raise DataError(
            f"one report is of one task, and {first.folder} is {one} while {second.folder} is {other}. Make "
            f"two reports."
        )
    name, unit = SCORES[runs[0].task]
    groups = group_runs(runs)
    names = _names([run.folder for run in runs])
    teacher = _teacher(runs)
    for group in groups:
        group.is_teacher = all(_is_teacher(run, runs) for run in group.runs)
        group.name = "teacher" if group.is_teacher else group.name
    rows = [_group_row(group, teacher) for group in groups]
    images: dict[str, str] = {}
    examples = {run.folder: read_examples(run.folder, images) for run in runs}
    return {
        "title": title,
        "task": runs[0].task,
        "score": {"name": name, "unit": unit, "digits": 1 if unit == "%" else 2},
        "teacher": teacher,
        "groups": rows,
        "differences": _differences(groups),
        "hints": {
            "latency": f"Latency was not measured. {AFTERWARDS}",
            "examples": f"Teacher and student have answered no examples in this run. {AFTERWARDS}",
        },
        "reported": any(run.arm is not None and run.arm.score is not None for run in runs),
        "same_data": len({repr(_validation(run)) for run in runs}) == 1,
        "images": images,
        "runs": [
            {
                "name": names[run.folder],
                "group": next(index for index, group in enumerate(groups) if run in group.runs),
                "score": run.score,
                "scores": run.final,
                "ended": run.ended,
                "train_seconds": run.train_seconds,
                "resumed_from": run.resumed_from,
                "compares_attention": _compares_attention(run),
                "seed": run.recipe.get("seed"),
                "environment": run.environment,
                "models": run.models,
                "recipe": run.recipe,
                "not_finite": len(run.not_finite),
                "losses": run.losses(),
                "alignment": _alignment(run),
                "examples": examples[run.folder],
            }
            for run in runs
        ],
    }


def _names(folders: Sequence[Path]) -> dict[Path, str]:
    """Each folder below what they have in common; the folder's own name where there is one only."""
    if len(folders) == 1:
        return {folders[0]: folders[0].name}
    common = os.path.commonpath(folders)
    return {
        folder: folder.name if str(folder) == common else os.path.relpath(folder, common)
        for folder in folders
    }


def _teacher(runs: Sequence[Run]) -> dict[str, Any] | None:
    """What is known of the teacher, if all runs have the same, with the best ``score`` that is known.

    That is one on the whole validation set, from a run or from the teacher's own run; else one on a sample, with
    ``low``, ``high`` and ``items``, of the run that comes first. Where each seed has a teacher of its own, what is
    known of the first, with the mean of the scores if all have one on the whole set.
    """
    places = list(dict.fromkeys(str(run.recipe["teacher"]) for run in runs if run.recipe.get("teacher")))
    if len(places) > 1 and not have_own_teachers(runs):
        return None
    found = [
        _one_teacher([run for run in runs if run.recipe.get("teacher") == place], runs) for place in places
    ]
    if len(found) < 2:
        return (found[0] if found else None) or None
    scores = [one["score"] for one in found if "score" in one and "sample" not in one]
    first = {key: value for key, value in found[0].items() if key not in _SCORED}
    while_training = [one["score_while_training"] for one in found if "score_while_training" in one]
    if len(while_training) == len(found):
        first |= {"score_while_training": fmean(while_training)}
    latency = _middle([known for one in found if (known := _latency(one))])
    if latency is not None:
        first |= {"latency_seconds": latency}
    return (first | {"score": fmean(scores)} if len(scores) == len(found) else first) or None


_SCORED = ("score", "low", "high", "sample", "score_while_training")


def _latency(model: Mapping[str, Any]) -> Mapping[str, float] | None:
    return model.get("latency_seconds") or None


def _beside_teacher(run: Run, teacher: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    """The latency of what was trained, as if the teacher beside it had taken what it takes in its middle run.

    A machine is not equally busy whenever a run ends, and both were measured in turns.
    """
    own, beside = _latency(run.trained), _latency(run.models.get("teacher", {}))
    usual = _latency(teacher or {})
    if own is None or beside is None or usual is None:
        return own
    return {name: value * usual["median"] / beside["median"] for name, value in own.items()}


def _middle(latencies: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """That of the middle run; of two, the faster."""
    return sorted(latencies, key=lambda one: one["median"])[(len(latencies) - 1) // 2] if latencies else None


def _one_teacher(learned: Sequence[Run], runs: Sequence[Run]) -> dict[str, Any]:
    """What is known of the teacher that these runs have."""
    found: dict[str, Any] = {}
    for run in learned:
        found = run.models.get("teacher", {}) | found
    own = next((run for run in runs if _is_teacher(run, learned)), None)
    if own is not None and own.score is not None:
        found = own.trained | found | {"score": own.score}
    arm = next((run.arm for run in learned if run.arm is not None and run.arm.teacher is not None), None)
    if arm is not None:
        found |= {"score": arm.teacher}
        if arm.teacher_while_training is not None:
            found |= {"score_while_training": arm.teacher_while_training}
    latency = _middle([known for run in learned if (known := _latency(run.models.get("teacher", {})))])
    if latency is not None:
        # Beside its students, and not when it was trained itself.
        found |= {"latency_seconds": latency}
    if "score" not in found and "sample_score" in found:
        found |= {
            "score": found["sample_score"],
            "low": found["sample_low"],
            "high": found["sample_high"],
            "sample": found["sample_items"],
        }
    return found


def _is_teacher(run: Run, runs: Sequence[Run]) -> bool:
    """Whether this run left the checkpoint from which the others learned."""
    places = {str(other.recipe["teacher"]) for other in runs if other.recipe.get("teacher")}
    return any(_lies_at(run.folder, Path(place).parent) for place in places)


def _lies_at(folder: Path, place: Path) -> bool:
    """Whether a place that a recipe names may be this folder: what it is relative to, no record says."""
    if place.is_absolute():
        return folder == place.resolve()
    parts = [part for part in place.parts if part != ".."]
    return bool(parts) and list(folder.parts[-len(parts) :]) == parts


def _group_row(group: Group, teacher: Mapping[str, Any] | None) -> dict[str, Any]:
    score = group.score()
    models = [run.trained for run in group.runs]
    seconds = [latency for run in group.runs if (latency := _beside_teacher(run, teacher))]
    if group.is_teacher and teacher and (beside := _latency(teacher)):
        seconds = [beside]
    compared = _against_teacher(group, teacher or {})
    return {
        "name": group.name,
        "is_arm": group.runs[0].arm is not None,
        "n_runs": len(group.runs),
        "score": score and score._asdict(),
        "is_teacher": group.is_teacher,
        "share": compared,
        "parameters": next((model["parameters"] for model in models if "parameters" in model), None),
        "latency_seconds": _middle(seconds),
        "reached": None if group.is_teacher else _reached(group, teacher or {}),
        "curve": [[examples, *_rounded(value)] for examples, value in group.curve()],
        "runs": [[[examples, value] for _, examples, value in run.curve] for run in group.runs],
    }


def _reached(group: Group, teacher: Mapping[str, Any]) -> dict[str, int | None] | None:
    """When runs reached 90 % of their teacher while they trained; None where no teacher's score is known.

    Returns:
        ``n`` of the runs reached it, ``of`` so many; ``examples`` is the median over all, the higher of two middle
        ones, None where at least half did not.
    """
    runs = [run for run in group.runs if run.ended] or group.runs
    targets = [(run, target) for run in runs if run.curve and (target := _target(run, teacher)) is not None]
    if not targets:
        return None
    found = [
        next((examples for _, examples, value in run.curve if value >= target), math.inf)
        for run, target in targets
    ]
    median = median_high(found)
    return {
        "n": sum(map(math.isfinite, found)),
        "of": len(found),
        "examples": int(median) if math.isfinite(median) else None,
    }


def _target(run: Run, teacher: Mapping[str, Any]) -> float | None:
    # A sample of the teacher's answers is no ground to say when a student reached it.
    if not teacher.get("score") or "sample" in teacher:
        return None
    own = None if run.arm is None else run.arm.teacher_while_training or run.arm.teacher
    return TARGET_SHARE * float(own or teacher.get("score_while_training", teacher["score"]))


def _against_teacher(group: Group, teacher: Mapping[str, Any]) -> float | None:
    """Percentage of the teacher's score, on the same examples; None for the teacher, or where one is not known."""
    if group.is_teacher or not teacher.get("score"):
        return None
    if "sample" not in teacher:
        score = group.score()
        return score and 100 * score.mean / float(teacher["score"])
    samples = [run.trained["sample_score"] for run in group.runs if "sample_score" in run.trained]
    return 100 * mean_interval(samples).mean / float(teacher["score"]) if samples else None


def _rounded(value: Interval) -> list[float | None]:
    return [None if one is None else round(one, 4) for one in value[:3]]


def _differences(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [
        {"of": second.name, "less": first.name, "is_arm": second.runs[0].arm is not None} | found._asdict()
        for first, second, found in paired_differences([group for group in groups if not group.is_teacher])
    ]


def _validation(run: Run) -> Any:
    """Everything of its data but places."""
    data = run.recipe.get("data") or {}
    return sorted((key, repr(value)) for key, value in data.items() if key not in DATA_PLACES)


def _compares_attention(run: Run) -> bool:
    attention = (run.recipe.get("objective") or {}).get("attention") or {}
    return run.with_teacher and bool(attention.get("weight"))


def _alignment(run: Run) -> dict[str, Any]:
    """Steps, the temperature, and pairs: names, weights per step (in thousandths; teacher by student) and figures.

    The temperature is None where weights are no softmax.
    """
    by_step = run.alignment.steps()
    term = (run.recipe.get("objective") or {}).get("attention") or {}
    temperature = term.get("temperature", 1.0) if term.get("method", "amad") == "amad" else None
    size = sum(len(row) for entry in next(iter(by_step.values()), {}).values() for row in entry["weights"])
    # As few steps as the weights of each leave room for.
    kept = evenly(len(by_step), max(2, MOST_WEIGHTS // max(size, 1)))
    steps = [list(by_step)[index] for index in kept]
    places = list(by_step[steps[-1]]) if steps else []
    return {
        "steps": steps,
        "temperature": temperature,
        "pairs": [_pair(run, place, [by_step[step].get(place) for step in steps]) for place in places],
    }


def _pair(run: Run, place: Place, entries: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    student = f"{place.stack}[{place.student_layer}]"
    last = entries[-1] or {}
    return {
        "stack": place.stack,
        "student": student,
        "teacher": _site(run, student, place.teacher_layer),
        "weights": [
            entry and [[round(1000 * a) for a in row] for row in entry["weights"]] for entry in entries
        ],
        "alike": last.get("alike"),
        "coverage_by_head": last.get("coverage_by_head"),
    } | {name: [_number(entry, name) for entry in entries] for name in ALIGNMENT_FIGURES}


def _site(run: Run, student: str, layer: int) -> str:
    """The teacher's site of a pair as the run's own list has it: its stack may be called otherwise."""
    named = [
        pair["teacher"]
        for pair in run.pairs
        if pair["student"] == student and pair["teacher"].endswith(f"[{layer}]")
    ]
    return str(named[0]) if named else f"{student.partition('[')[0]}[{layer}]"


def _number(entry: Mapping[str, Any] | None, name: str) -> float | None:
    value = None if entry is None else entry.get(name)
    return round(float(value), 4) if isinstance(value, int | float) else None
