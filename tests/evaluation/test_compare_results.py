import csv
import io
import json

import pytest

from amad.errors import RecipeError
from amad.evaluation.compare_files import markdown, rows, write_results
from amad.evaluation.compare_jobs import Remaining, choose, remaining
from amad.evaluation.compare_plan import Arm
from amad.evaluation.compare_results import check_teachers, summarise
from amad.evaluation.predictions import digest_of_model
from amad.records import read_records

NOTHING = Remaining((), (), ())


@pytest.fixture
def three(describe, leave, tmp_path):
    """Three arms and three seeds, all finished; the teacher has 80."""
    one = describe.comparison("none", "logits", "amad", n_seeds=3)
    figures = {"none": (50, 52, 54), "logits": (51, 51, 57), "amad": (70, 74, 75)}
    for arm in one.arms:
        for run in one.runs(tmp_path, arm, ()):
            value = float(figures[arm.label][run.seed])
            curve = [(100, value - 5), (200, value)]
            leave.finish(run, value, reported=value, curve=curve, seconds=10.0 + run.seed)
    leave.evaluated(tmp_path / "teacher", 80.0)
    return one


def arms_of(document):
    return {arm["label"]: arm for arm in document["arms"]}


def test_every_figure_of_a_case_worked_by_hand(three, tmp_path):
    document = summarise(three, tmp_path, NOTHING)
    arms = arms_of(document)
    assert (document["teacher"], document["unfinished"], document["examples"], document["steps"]) == (
        80,
        0,
        320,
        10,
    )
    assert [arm["mean"] for arm in document["arms"]] == [52, 53, 73]
    assert arms["none"]["deviation"] == 2
    assert arms["amad"]["share_of_teacher"] == pytest.approx(73 / 80)
    # Differences 1, -1, 3 and 20, 22, 21; t of two comparisons is the 0.9875 quantile with 2 degrees, 6.2053.
    logits, amad = arms["logits"]["difference"], arms["amad"]["difference"]
    assert (logits["mean"], logits["deviation"]) == (1, 2)
    assert (logits["low"], logits["high"]) == pytest.approx(
        (1 - 6.2053 * 2 / 3**0.5, 1 + 6.2053 * 2 / 3**0.5), abs=1e-3
    )
    assert (amad["mean"], amad["deviation"]) == (21, 1)
    assert (amad["low"], amad["high"]) == pytest.approx(
        (21 - 6.2053 / 3**0.5, 21 + 6.2053 / 3**0.5), abs=1e-3
    )
    assert [arm["verdict"] for arm in document["arms"]] == ["baseline", "no difference", "better"]
    # 90 % of the teacher is 72: seed 0 of amad stays below, seeds 1 and 2 get there at their last evaluation.
    assert (arms["amad"]["examples_to_90"], arms["amad"]["n_reached"]) == (200, 2)
    assert (arms["none"]["examples_to_90"], arms["none"]["n_reached"]) == (None, 0)
    assert arms["amad"]["seconds"] == 11


def test_a_seed_is_held_against_its_own_teacher(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", recipe=describe.recipe(teacher="t-{seed}"))
    for arm, values in zip(one.arms, [(40, 60), (70, 70)], strict=True):
        for run in one.runs(tmp_path, arm, ()):
            value = float(values[run.seed])
            leave.finish(run, value, reported=value, curve=[(100, value)])
    for seed, value in enumerate((100.0, 60.0)):
        leave.evaluated(tmp_path / f"teacher/seed-{seed}", value)
    document = summarise(one, tmp_path, NOTHING)
    assert document["teacher"] == 80
    assert document["teacher_figures"] == {"0": 100, "1": 60}
    arms = arms_of(document)
    assert arms["none"]["share_of_teacher"] == 50 / 80
    # 90 and 54 are to be reached.
    assert [run["examples_to_90"] for run in document["runs"]] == [None, 100, None, 100]
    assert "Each seed has a teacher of its own" in markdown(document)
    (tmp_path / "runs/amad/seed-1/results.metrics.json").unlink()
    assert arms_of(summarise(one, tmp_path, NOTHING))["amad"]["share_of_teacher"] == 70 / 100
    (tmp_path / "teacher/seed-0/results.metrics.json").unlink()
    assert arms_of(summarise(one, tmp_path, NOTHING))["amad"]["share_of_teacher"] is None


def test_without_the_teachers_figure_nothing_is_said_of_when_it_was_reached(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", recipe=describe.recipe(teacher="t-{seed}"))
    for arm in one.arms:
        for run in one.runs(tmp_path, arm, ()):
            leave.finish(run, 97.0, reported=97.0, curve=[(100, 97.0)])
    document = summarise(one, tmp_path, NOTHING)
    assert [row[6] for row in rows(document)] == ["–", "–"]
    leave.evaluated(tmp_path / "teacher/seed-0", 100.0)
    assert [row[6] for row in rows(summarise(one, tmp_path, NOTHING))] == ["", "100", "100"]


def test_a_teacher_that_changed_is_refused_before_more_is_made(describe, leave, tmp_path):
    teacher = tmp_path / "t"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    one = describe.comparison("none", "amad", recipe=describe.recipe(teacher=str(teacher)))
    check_teachers(one, tmp_path)
    leave.evaluated(tmp_path / "teacher", 80.0, model=digest_of_model(teacher))
    check_teachers(one, tmp_path)
    (teacher / "config.json").write_text("{ }")
    with pytest.raises(
        RecipeError, match=r"the teacher in .*t changed since .* began: its files had the digest"
    ):
        check_teachers(one, tmp_path)


def test_another_baseline_turns_the_verdict_round(three, tmp_path):
    document = summarise(three.model_copy(update={"baseline": "amad"}), tmp_path, NOTHING)
    assert [arm["verdict"] for arm in document["arms"]] == ["worse", "worse", "baseline"]
    assert arms_of(document)["none"]["difference"]["mean"] == -21


def test_there_is_no_verdict_while_a_run_of_either_arm_is_missing(three, tmp_path):
    (tmp_path / "runs/amad/seed-2/results.metrics.json").unlink()
    document = summarise(three, tmp_path, NOTHING)
    assert [arm["verdict"] for arm in document["arms"]] == ["baseline", "no difference", "unfinished"]
    assert (document["unfinished"], arms_of(document)["amad"]["mean"]) == (1, 72)
    (tmp_path / "runs/none/seed-0/results.metrics.json").unlink()
    document = summarise(three, tmp_path, NOTHING)
    assert [arm["verdict"] for arm in document["arms"]] == ["baseline", "unfinished", "unfinished"]
    assert "2 runs are not finished" in markdown(document)
    assert ("amad", "2 of 3") in [row[:2] for row in rows(document)]


def test_one_seed_gives_a_difference_and_no_verdict(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", n_seeds=1)
    for arm, value in zip(one.arms, (50.0, 60.0), strict=True):
        leave.finish(one.runs(tmp_path, arm, ())[0], value, reported=value)
    amad = arms_of(summarise(one, tmp_path, NOTHING))["amad"]
    assert amad["verdict"] == "not enough seeds"
    assert amad["difference"] == {"mean": 10, "deviation": None, "low": None, "high": None}


def test_seeds_that_differ_alike_have_no_interval(describe, leave, tmp_path):
    one = describe.comparison("none", "amad")
    for arm, value in zip(one.arms, (50.0, 55.0), strict=True):
        for run in one.runs(tmp_path, arm, ()):
            leave.finish(run, value + run.seed, reported=value + run.seed)
    text = markdown(summarise(one, tmp_path, NOTHING))
    assert "| +5.00 in every seed | not enough seeds |" in text


def test_unequal_budgets_are_refused(three, leave, tmp_path):
    run = three.runs(tmp_path, three.arms[2], ())[1]
    (run.folder / "records.jsonl").unlink()
    leave.finish(run, 74.0, examples=321)
    with pytest.raises(RecipeError, match="had 320 examples, and amad, seed 1 had 321"):
        summarise(three, tmp_path, NOTHING)


@pytest.mark.parametrize("place", ["teacher", "runs/logits/seed-1"])
def test_figures_of_other_data_are_refused(three, leave, tmp_path, place):
    leave.evaluated(tmp_path / place, 51.0, data="other")
    with pytest.raises(RecipeError, match="were evaluated on different data"):
        summarise(three, tmp_path, NOTHING)


def test_a_trial_that_diverged_is_not_chosen(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", search={"weight": (1, 3, 9)})
    for trial, value in zip(one.trials(tmp_path, one.arms[1]), (float("nan"), 0.0, 5.0), strict=True):
        leave.finish(trial, value)
    assert choose(one, tmp_path, one.arms[1]).setting == ("objective.attention.weight=9",)


def test_what_is_reported_is_not_what_was_validated(describe, leave, tmp_path):
    report = ("data.holdout=null", "data.validation={questions: test.json}")
    one = describe.comparison("none", "amad", report=report)
    for arm in one.arms:
        for run in one.runs(tmp_path, arm, ()):
            leave.finish(run, 90.0, reported=40.0 + run.seed, curve=[(100, 60.0), (200, 90.0)])
    leave.evaluated(tmp_path / "teacher", 50.0)
    leave.evaluated(tmp_path / "teacher-on-validation", 100.0)
    document = summarise(one, tmp_path, NOTHING)
    amad = arms_of(document)["amad"]
    assert amad["figures"] == {"0": 40, "1": 41}
    assert amad["share_of_teacher"] == pytest.approx(40.5 / 50)
    # The curve is of the validation set, and so is the teacher that it is measured by.
    assert amad["examples_to_90"] == 200
    (tmp_path / "teacher-on-validation/results.metrics.json").unlink()
    assert arms_of(summarise(one, tmp_path, NOTHING))["amad"]["examples_to_90"] is None


def test_the_best_trial_is_what_is_run_and_the_search_is_told(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", search={"weight": (1, 3, 9)})
    amad = one.arms[1]
    for trial, value in zip(one.trials(tmp_path, amad), (20.0, 30.0, 30.0), strict=True):
        assert remaining(one, tmp_path).waiting == ("amad", "amad")
        leave.finish(trial, value)
    left = remaining(one, tmp_path)
    assert left.waiting == ()
    runs = [job.run for job in left.ready if job.run is not None]
    assert {run.recipe.objective.attention.weight for run in runs if run.arm == amad} == {3}
    document = summarise(one, tmp_path, left)
    assert arms_of(document)["amad"]["setting"] == ["objective.attention.weight=3"]
    told = " ".join(document["notes"])
    assert "none no trials, amad 3 trials" in told
    assert "on the data that is reported here" in told
    assert "weight does not apply to none" in told
    assert markdown(document).count("| yes |") == 1


def test_the_files_say_what_the_document_says(three, tmp_path):
    document = summarise(three, tmp_path, NOTHING)
    write_results(document, tmp_path, three.model_dump(mode="json"))
    write_results(document, tmp_path, three.model_dump(mode="json"))
    text = (tmp_path / "results.md").read_text()
    assert (
        "| amad | 3 | 73.00 ± 2.65 | 91.2 % | +21.00 (+17.42 to +24.58) | better | 200 (2 of 3 reached) | 11 |"
        in text
    )
    assert "| teacher |  | 80.00 |" in text
    lines = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert [line["verdict"] for line in lines] == ["baseline", "no difference", "better"]
    assert float(lines[2]["low"]) == document["arms"][2]["difference"]["low"]
    runs = list(csv.DictReader(io.StringIO((tmp_path / "runs.csv").read_text())))
    assert [(run["arm"], int(run["seed"]), float(run["value"])) for run in runs][:4] == [
        ("none", 0, 50),
        ("none", 1, 52),
        ("none", 2, 54),
        ("logits", 0, 51),
    ]
    events = read_records(tmp_path / "records.jsonl")
    assert [event["event"] for event in events] == ["recipe", *["metrics"] * 9, "comparison"]
    assert json.loads(json.dumps(events[-1]["arms"])) == json.loads(json.dumps(document["arms"]))
    assert events[0]["comparison"]["baseline"] == "none"


def test_a_comparison_that_has_not_begun_has_a_table(describe, tmp_path):
    sharp = Arm(label="a-b", method="amad", overrides=("pairing=last",))
    one = describe.comparison("none", sharp)
    document = summarise(one, tmp_path, NOTHING)
    write_results(document, tmp_path, one.model_dump(mode="json"))
    assert document["unfinished"] == 4
    assert "| a-b | amad | `pairing=last` |" in (tmp_path / "results.md").read_text()
