"""Comparisons, and what their runs leave behind."""

import json
from types import SimpleNamespace

import pytest

from amad.evaluation.compare_plan import Arm, Comparison
from amad.recipe import check_recipe
from amad.records import RunRecords


def recipe(**more):
    tree = {
        "task": "vqa",
        "output": "out",
        "data": {"root": "d", "train": {"questions": "q.json"}, "holdout": {"share": 0.1}},
        "teacher": "t",
        "student": {"heads": 2},
        "training": {"max_steps": 10, "learning_rate": 1e-3},
    }
    return check_recipe(tree | more)


def comparison(*arms, **more):
    arms = tuple(arm if isinstance(arm, Arm) else Arm(label=arm, method=arm) for arm in arms)
    given = {"recipe": recipe(), "arms": arms, "n_seeds": 2, "baseline": arms[0].label}
    return Comparison(**(given | more))


def begin(run):
    """The records that a run opens with, as amad writes them."""
    records = RunRecords(run.folder / "records.jsonl")
    records.write("recipe", recipe=run.recipe.model_dump(mode="json"), with_teacher=run.distils)
    records.write("environment", torch="2.13.0", commit="abc")
    records.write("seeds", seed=run.seed, start=f"start-{run.seed}")
    return records


def end(records, value, *, steps=10, examples=320, seconds=7.5):
    records.write("step", step=steps, examples=examples, train_loss=1.0)
    records.write("timing", train_seconds=seconds, examples_seen=examples)
    records.write("metrics", final=True, accuracy=value)


def finish(run, value, *, reported=None, curve=(), **more):
    """Everything that amad distill and amad evaluate leave of a run that a comparison reads."""
    with begin(run) as records:
        for step, (examples, figure) in enumerate(curve, 1):
            records.write("metrics", step=step, examples=examples, eval_accuracy=figure)
        end(records, value, **more)
    if reported is not None:
        evaluated(run.folder, reported)


def evaluated(folder, value, data="abc", model="def"):
    folder.mkdir(parents=True, exist_ok=True)
    document = {"questions": 3, "accuracy": value, "digests": {"model": model, "data": data}}
    (folder / "results.metrics.json").write_text(json.dumps(document))


@pytest.fixture
def describe():
    return SimpleNamespace(recipe=recipe, comparison=comparison)


@pytest.fixture
def leave():
    return SimpleNamespace(begin=begin, end=end, finish=finish, evaluated=evaluated)
