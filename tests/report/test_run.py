import pytest
import story
from story import write_run

from amad.errors import DataError
from amad.records import RunRecords
from amad.report.run import MOST_STEPS, Place, find_runs, read_run


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = read_run(write_run(tmp_path / "one", accuracy=83.4))
    assert run.with_teacher
    assert run.score == 83.4
    assert run.curve[0] == (10, 640, pytest.approx(83.4 / 4))
    assert run.trained["parameters"] == 100_000
    assert run.models["teacher"]["parameters"] == 800_000
    losses = run.losses()
    assert losses["steps"] == [10, 20, 30, 40]
    assert losses["values"]["loss"] == [1.0, 0.5, pytest.approx(1 / 3), 0.25]
    assert "grad_norm" not in losses["values"]
    steps = run.alignment.steps()
    assert steps[20][Place("decoder.cross", 0, 1)]["weights"] == story.weights(20)
    assert run.train_seconds == 12.5


def test_what_was_logged_after_a_checkpoint_that_the_run_went_back_to_is_forgotten(tmp_path):
    tree = story.recipe()
    with RunRecords(tmp_path / "records.jsonl") as records:
        story.begin(records, tree)
        for step in (10, 20, 30):
            story.log(records, step, loss=9.0)
            story.score(records, step, 10.0)
        story.begin(records, tree, resumed_from=20)
        story.log(records, 40, loss=1.0)
        story.score(records, 40, 50.0)
        story.score(records, 40, 51.0)
    run = read_run(tmp_path)
    assert run.losses()["steps"] == [10, 20, 40]
    assert list(run.alignment.steps()) == [10, 20, 40]
    assert [(step, value) for step, _, value in run.curve] == [(10, 10.0), (20, 10.0), (40, 51.0)]
    assert run.score == 51.0
    assert run.train_seconds is None


def test_a_loss_that_is_no_number_is_counted_and_left_out_of_the_curve(tmp_path):
    with RunRecords(tmp_path / "records.jsonl") as records:
        story.begin(records, story.recipe())
        story.log(records, 10, loss=2.0)
        story.log(records, 20, loss=float("nan"))
    run = read_run(tmp_path)
    assert run.not_finite == [20]
    assert run.losses()["values"]["loss"] == [2.0, None]


def test_a_long_run_takes_bounded_room(tmp_path):
    with RunRecords(tmp_path / "records.jsonl") as records:
        story.begin(records, story.recipe())
        for step in range(1, 3001):
            story.log(records, step)
    run = read_run(tmp_path)
    steps = list(run.alignment.steps())
    assert len(steps) == MOST_STEPS
    assert (steps[0], steps[-1]) == (1, 3000)
    assert len(run.losses()["steps"]) == MOST_STEPS


def test_a_folder_of_runs_stands_for_them_and_no_run_is_counted_twice(tmp_path):
    write_run(tmp_path / "demo" / "alone")
    write_run(tmp_path / "demo" / "amad")
    found = find_runs([tmp_path / "demo", tmp_path / "demo" / "amad"])
    assert [folder.name for folder in found] == ["alone", "amad"]


def test_records_of_a_comparison_beside_runs_are_those_of_no_run(tmp_path):
    write_run(tmp_path / "amad")
    (tmp_path / "amad-compare").mkdir()
    (tmp_path / "amad-compare" / "compare.yaml").touch()
    (tmp_path / "amad-compare" / "records.jsonl").touch()
    assert [folder.name for folder in find_runs([tmp_path])] == ["amad"]


def test_files_beside_runs_are_passed_over(tmp_path):
    write_run(tmp_path / "seed-0")
    (tmp_path / "seed-0.lock").touch()
    assert [folder.name for folder in find_runs(sorted(tmp_path.glob("seed-*")))] == ["seed-0"]
    with pytest.raises(DataError, match=r"seed-0\.lock holds no"):
        find_runs([tmp_path / "seed-0.lock"])


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no records\.jsonl"):
        find_runs([tmp_path])


@pytest.mark.parametrize("tree", [{"task": "poetry"}, "text"])
def test_records_of_something_else_are_refused(tmp_path, tree):
    with RunRecords(tmp_path / "records.jsonl") as records:
        records.write("recipe", recipe=tree)
    with pytest.raises(DataError, match="no known task"):
        read_run(tmp_path)


def test_records_without_a_recipe_are_refused(tmp_path):
    with RunRecords(tmp_path / "records.jsonl") as records:
        records.write("note", text="alone")
    with pytest.raises(DataError, match="names no recipe"):
        read_run(tmp_path)


def test_a_run_that_goes_on_after_its_end_has_not_ended(tmp_path):
    folder = write_run(tmp_path / "one", accuracy=80.0)
    with RunRecords(folder / "records.jsonl") as records:
        story.begin(records, story.recipe(), resumed_from=40)
        story.score(records, 50, 81.0)
    run = read_run(folder)
    assert (run.final, run.train_seconds, run.score) == ({}, None, 81.0)
    assert [step for step, _, _ in run.curve] == [10, 20, 30, 40, 50]


def test_a_score_on_all_questions_counts_before_the_one_at_the_end(tmp_path):
    folder = write_run(tmp_path / "one", accuracy=80.0)
    with RunRecords(folder / "records.jsonl") as records:
        records.write("model", who="student", score=80.5, score_items=3200)
    assert read_run(folder).score == 80.5


@pytest.mark.parametrize(("best", "last"), [(False, 90.0), (True, 80.0)])
def test_the_best_model_evaluated_at_the_end_is_no_point_of_the_curve(tmp_path, best, last):
    folder = write_run(tmp_path, training={"max_steps": 40, "load_best_model_at_end": best})
    with RunRecords(folder / "records.jsonl") as records:
        story.score(records, 40, 90.0)
    assert read_run(folder).curve[-1] == (40, 2560, last)


@pytest.mark.parametrize(
    ("kind", "broken"), [("step", {"step": "ten", "loss": 1.0}), ("alignment", {"step": 10, "weights": None})]
)
def test_records_that_are_not_as_written_are_named(tmp_path, kind, broken):
    place = {"stack": "encoder.self", "student_layer": 0, "teacher_layer": 0}
    with RunRecords(tmp_path / "records.jsonl") as records:
        story.begin(records, story.recipe())
        records.write(kind, **place | broken)
    with pytest.raises(DataError, match=f"a record of '{kind}' is not as amad writes it"):
        read_run(tmp_path)
