import dataclasses

import pytest

from amad.errors import DataError, RecipeError
from amad.evaluation.compare_plan import MAIN_FIGURES
from amad.evaluation.compare_runs import (
    Reported,
    RunOutcome,
    check_budgets,
    check_same_teacher,
    differing_environments,
    differing_starts,
    examples_to,
    last_step,
    read_outcome,
    read_reported,
    run_state,
)
from amad.recipe import check_recipe
from amad.records import RunRecords
from amad.training.tasks import load_task


@pytest.fixture
def run(describe, tmp_path):
    one = describe.comparison("amad", "none")
    return one.runs(tmp_path, one.arms[0], ())[0]


def test_the_figure_that_is_compared_is_the_tasks_main_one(tmp_path):
    train = {
        "vqa": {"train": {"questions": "q.json"}},
        "captions": {"train": {"captions": "c.json"}},
        "translation": {},
    }
    for task, (figure, decimals) in MAIN_FIGURES.items():
        recipe = check_recipe({"task": task, "output": "out", "data": {"root": str(tmp_path)} | train[task]})
        learned = load_task(recipe.data, 0, None)
        assert (learned.main_figure, learned.figures[learned.main_figure]) == (figure, decimals)


def test_a_run_is_new_then_running_then_interrupted_or_finished(run, leave):
    assert run_state(run) == "new"
    (run.folder / "checkpoints").mkdir(parents=True)
    assert run_state(run) == "new"
    with leave.begin(run) as records:
        records.write("step", step=4, examples=128, loss=2.0)
        assert run_state(run) == "running"
        assert last_step(run) == 4
    assert run_state(run) == "interrupted"
    with RunRecords(run.folder / "records.jsonl") as records:
        leave.end(records, 50.0)
        assert run_state(run) == "running"
    assert run_state(run) == "finished"
    assert last_step(run) == 10


def test_a_run_stays_finished_whatever_is_written_after_its_end(run, leave):
    leave.finish(run, 50.0)
    with RunRecords(run.folder / "records.jsonl") as records:
        records.write("note", text="x" * (1 << 19))
    assert run_state(run) == "finished"
    with (run.folder / "records.jsonl").open("ab") as file:
        file.write(b'{"schema"')
    assert run_state(run) == "finished"


def test_what_a_run_left(run, leave):
    leave.finish(run, 61.5, curve=[(64, 20.0), (128, 55.0), (320, 61.5)], seconds=12.25)
    found = read_outcome(run)
    assert (found.validated, found.steps, found.examples, found.seconds) == (61.5, 10, 320, 12.25)
    assert found.curve == ((64, 20.0), (128, 55.0), (320, 61.5))
    assert found.start == "start-0"
    assert found.environment == {"torch": "2.13.0", "commit": "abc"}


def test_a_run_that_went_on_has_one_curve_and_no_time(run, leave):
    with leave.begin(run) as records:
        records.write("metrics", step=1, examples=64, eval_accuracy=20.0)
        records.write("metrics", step=2, examples=128, eval_accuracy=30.0)
    with leave.begin(run) as records:
        records.write("note", resumed_from="checkpoint-1")
        records.write("metrics", step=2, examples=128, eval_accuracy=30.0)
        leave.end(records, 40.0)
    found = read_outcome(run)
    assert found.curve == ((64, 20.0), (128, 30.0))
    assert found.seconds is None


def test_a_run_that_began_again_from_the_start_was_timed_as_a_whole(run, leave):
    with leave.begin(run) as records:
        records.write("metrics", step=1, examples=64, eval_accuracy=20.0)
    with leave.begin(run) as records:
        records.write("note", resumed_from="the start")
        leave.end(records, 40.0, seconds=3.0)
    assert read_outcome(run).seconds == 3.0


def test_records_of_another_recipe_are_refused_and_places_do_not_count(run, leave):
    leave.finish(run, 50.0)
    data = run.recipe.data.model_copy(update={"root": "elsewhere", "image_cache_gib": 0.0})
    moved = run.recipe.model_copy(update={"data": data})
    assert read_outcome(dataclasses.replace(run, recipe=moved)).validated == 50.0
    other = run.recipe.model_copy(update={"pairing": "last"})
    with pytest.raises(RecipeError, match="is of another recipe than"):
        read_outcome(dataclasses.replace(run, recipe=other))


def test_a_run_that_learned_from_two_teachers_is_refused(run, leave):
    with leave.begin(run) as records:
        records.write("seeds", seed=run.seed, start="s", teacher="one")
        records.write("note", resumed_from="checkpoint-5")
        records.write("seeds", seed=run.seed, start="s", teacher="other")
        leave.end(records, 50.0)
    with pytest.raises(RecipeError, match="different weights before and after an interruption"):
        read_outcome(run)


def test_records_that_lack_their_end_are_named(run, leave):
    leave.begin(run).close()
    with pytest.raises(DataError, match="has no timing, so its run is not finished"):
        read_outcome(run)


def test_what_was_evaluated(tmp_path, leave):
    assert read_reported(tmp_path, "vqa") is None
    leave.evaluated(tmp_path, 71.25)
    assert read_reported(tmp_path, "vqa") == Reported(71.25, "abc", "def")
    for value in (None, float("nan")):
        leave.evaluated(tmp_path, value)
        with pytest.raises(DataError, match="nothing to score against"):
            read_reported(tmp_path, "vqa")
    with pytest.raises(DataError, match=r"is not what amad evaluate writes.*BLEU"):
        read_reported(tmp_path, "translation")


@pytest.fixture
def outcomes(describe, leave, tmp_path):
    """Outcomes of two arms and two seeds; what is given belongs to the last run."""

    def make(**more):
        one = describe.comparison("amad", "none")
        runs = [run for arm in one.arms for run in one.runs(tmp_path, arm, ())]
        for run in runs:
            leave.finish(run, 50.0)
        found = [read_outcome(run) for run in runs]
        found[-1] = dataclasses.replace(found[-1], **more)
        return list(zip(runs, found, strict=True))

    return make


def test_equal_budgets_may_be_compared(outcomes):
    check_budgets(outcomes())
    check_budgets([])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"examples": 319}, "amad, seed 0 had 320 examples, and none, seed 1 had 319"),
        ({"steps": 1000}, "amad, seed 0 had 10 optimiser steps, and none, seed 1 had 1,000"),
    ],
)
def test_unequal_budgets_are_refused(outcomes, more, said):
    with pytest.raises(RecipeError, match=said):
        check_budgets(outcomes(**more))


def test_other_starts_and_environments_are_told(outcomes):
    same = outcomes()
    assert differing_starts(same) == []
    assert differing_environments([outcome for _, outcome in same]) == {}
    other = outcomes(start="another", environment={"torch": "2.13.0", "commit": "def"})
    assert differing_starts(other) == [("none", "amad")]
    assert differing_environments([outcome for _, outcome in other]) == {"commit": ["abc", "def"]}


def test_examples_until_a_target_are_those_of_the_first_evaluation_that_reached_it():
    curve = [(100, 10.0), (200, 72.0), (300, 71.0), (400, 80.0)]
    assert examples_to(curve, 72.0) == 200
    assert examples_to(curve, 75.0) == 400
    assert examples_to(curve, 81.0) is None


def test_runs_that_learned_from_other_weights_are_not_compared(run):
    outcome = RunOutcome(1.0, 1, 1, None, None, "one", {}, ())
    alone = dataclasses.replace(outcome, teacher=None)
    check_same_teacher([(run, outcome), (run, alone), (run, outcome)])
    with pytest.raises(RecipeError, match="learned from different weights"):
        check_same_teacher([(run, outcome), (run, dataclasses.replace(outcome, teacher="other"))])
    elsewhere = dataclasses.replace(run, recipe=run.recipe.model_copy(update={"teacher": "elsewhere"}))
    check_same_teacher([(run, outcome), (elsewhere, dataclasses.replace(outcome, teacher="other"))])
