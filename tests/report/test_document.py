import json

import pytest
import story
from story import begin, end, recipe, write_examples, write_run

from amad.errors import DataError
from amad.records import RunRecords
from amad.report import document
from amad.report.document import build_document
from amad.report.page import render
from amad.report.run import read_run


def documented(*folders):
    return build_document([read_run(folder.resolve()) for folder in folders], "runs")


def test_runs_are_named_below_what_they_have_in_common(tmp_path):
    found = documented(write_run(tmp_path / "a" / "one"), write_run(tmp_path / "b" / "one", seed=1))
    assert [run["name"] for run in found["runs"]] == ["a/one", "b/one"]
    assert [run["group"] for run in found["runs"]] == [0, 0]


def test_a_run_inside_of_another_has_a_name_of_its_own(tmp_path):
    outer = write_run(tmp_path / "outer")
    found = documented(outer, write_run(outer / "inner"))
    assert [run["name"] for run in found["runs"]] == ["outer", "inner"]


def test_a_sample_stands_for_the_score_of_a_teacher_until_all_were_asked(tmp_path):
    folder = write_run(tmp_path / "one", accuracy=81.0)
    with RunRecords(folder / "records.jsonl") as records:
        records.write(
            "model", who="teacher", sample_score=90.0, sample_low=85.0, sample_high=94.0, sample_items=200
        )
    teacher = documented(folder)["teacher"]
    assert (teacher["score"], teacher["low"], teacher["high"], teacher["sample"]) == (90.0, 85.0, 94.0, 200)
    with RunRecords(folder / "records.jsonl") as records:
        records.write("model", who="student", sample_score=72.0, sample_items=200)
    # 72 of 90 on the same examples, and not the 81 of all; nothing is said of when the student got there.
    (group,) = documented(folder)["groups"]
    assert (group["share"], group["reached"]) == (pytest.approx(80), None)
    with RunRecords(folder / "records.jsonl") as records:
        records.write("model", who="teacher", score=92.0, score_items=3200)
    found = documented(folder)
    assert (found["teacher"]["score"], "sample" in found["teacher"]) == (92.0, False)
    assert found["groups"][0]["share"] == pytest.approx(100 * 81 / 92)


def test_the_teacher_of_a_run_is_found_among_the_runs(tmp_path):
    teacher = write_run(tmp_path / "teacher", accuracy=90.0, with_teacher=False, teacher=None)
    student = write_run(tmp_path / "student", accuracy=81.0, teacher=str(teacher / "model"))
    found = documented(teacher, student)
    assert found["teacher"]["score"] == 90.0
    assert found["teacher"]["parameters"] == 800_000
    assert [group["name"] for group in found["groups"]] == ["teacher", "AMAD kl"]
    assert [group["share"] for group in found["groups"]] == [None, pytest.approx(90)]
    # 81 / 40 per step, and 90 % of 90 is 81: reached at the end alone.
    assert [group["reached"] for group in found["groups"]] == [None, {"n": 1, "of": 1, "examples": 2560}]


def test_a_teacher_without_a_score_leaves_the_share_open(tmp_path):
    (group,) = documented(write_run(tmp_path / "one"))["groups"]
    assert (group["share"], group["reached"]) == (None, None)


def test_runs_of_two_tasks_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"one is vqa while .*two is captions"):
        documented(write_run(tmp_path / "one"), write_run(tmp_path / "two", task="captions"))


def test_runs_on_other_data_are_told_apart(tmp_path):
    first = write_run(tmp_path / "one")
    same = write_run(tmp_path / "two", data=story.recipe()["data"] | {"root": "elsewhere"})
    other = write_run(tmp_path / "three", data=story.recipe()["data"] | {"holdout": 0.2})
    assert documented(first, same)["same_data"]
    assert not documented(first, other)["same_data"]


def test_weights_are_thousandths_at_the_steps_of_the_slider(tmp_path):
    (run,) = documented(write_run(tmp_path / "one"))["runs"]
    assert run["alignment"]["steps"] == [10, 20, 30, 40]
    first = run["alignment"]["pairs"][0]
    assert (first["student"], first["teacher"]) == ("encoder.self[0]", "encoder.self[1]")
    assert first["weights"][0] == [[501, 499]] * 4
    assert first["entropy"] == [0.9] * 4


def test_many_large_alignments_leave_fewer_steps_and_never_more_room(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "MOST_WEIGHTS", 16 * 7)
    (run,) = documented(write_run(tmp_path / "one", steps=300))["runs"]
    # Two pairs of 4 x 2 weights at each of 30 steps, and room for seven steps.
    assert len(run["alignment"]["steps"]) == 7
    assert (run["alignment"]["steps"][0], run["alignment"]["steps"][-1]) == (10, 300)


def test_a_run_that_has_only_begun_makes_a_document(tmp_path):
    with RunRecords(tmp_path / "records.jsonl") as records:
        story.begin(records, story.recipe())
    (run,) = documented(tmp_path)["runs"]
    assert (run["score"], run["ended"], run["losses"]["steps"], run["alignment"]["pairs"]) == (
        None,
        False,
        [],
        [],
    )


def test_records_of_an_earlier_version_have_no_likeness_of_heads(tmp_path):
    with RunRecords(tmp_path / "records.jsonl") as records:
        records.write("recipe", recipe=story.recipe(), with_teacher=True)
        records.write("step", step=1, examples=64, loss=1.0, loss_task=1.0, share_task=1.0)
        records.write(
            "alignment", step=1, stack="encoder.self", student_layer=0, teacher_layer=1, entropy=1.0,
            largest=0.5, coverage=1.0, collapse=0.0, weights=[[0.5, 0.5]],
        )  # fmt: skip
    (run,) = documented(tmp_path)["runs"]
    (pair,) = run["alignment"]["pairs"]
    assert (pair["alike"], pair["teacher"]) == (None, "encoder.self[1]")


def test_a_diverged_run_makes_a_document_without_what_is_no_number(tmp_path):
    folder = write_examples(write_run(tmp_path / "one"))
    rows = (folder / "examples/examples.jsonl").read_text().splitlines()
    rows[0] = rows[0].replace('"largest": 0.75', '"largest": NaN', 1)
    (folder / "examples/examples.jsonl").write_text("\n".join(rows) + "\n")
    with RunRecords(folder / "records.jsonl") as records:
        records.write("step", step=50, examples=3200, loss=float("nan"), loss_task=float("nan"))
        records.write(
            "alignment", step=50, stack="encoder.self", student_layer=0, teacher_layer=1, entropy=float("nan"),
            weights=[[float("nan")] * 2] * 4, alike=[[1.0, float("nan")]] * 2, coverage_by_head=[1.0] * 4,
        )  # fmt: skip
    document = documented(folder)
    json.dumps(document, allow_nan=False)
    (run,) = document["runs"]
    assert run["not_finite"] == 1
    assert run["alignment"]["steps"][-1] == 40
    assert run["examples"]["seen"] == []


def test_runs_that_go_on_tell_since_when_their_seconds_count(tmp_path):
    with RunRecords(tmp_path / "one/records.jsonl") as records:
        begin(records, recipe())
        begin(records, recipe(), resumed_from=10)
        end(records, 80.0)
    page = documented(tmp_path / "one")
    (run,) = page["runs"]
    assert (run["train_seconds"], run["resumed_from"]) == (12.5, "checkpoint-10")
    assert "12 s since checkpoint-10" in render(page)


def test_teachers_of_their_own_are_shown_by_their_mean(tmp_path):
    folders = []
    for seed, score in enumerate((80.0, 90.0)):
        write_run(
            tmp_path / f"teacher-{seed}", accuracy=score, with_teacher=False, teacher=None, student=None
        )
        folders.append(tmp_path / f"teacher-{seed}")
        place = str(tmp_path / f"teacher-{seed}" / "model")
        write_run(tmp_path / f"amad-{seed}", accuracy=score - 17, seed=seed, teacher=place)
        folders.append(tmp_path / f"amad-{seed}")
    document = documented(*folders)
    assert document["teacher"]["score"] == 85
    (amad,) = [group for group in document["groups"] if not group["is_teacher"]]
    assert (amad["n_runs"], amad["share"]) == (2, pytest.approx(100 * 68 / 85))


def test_a_teachers_latency_is_the_one_beside_its_students(tmp_path):
    def latency(folder, **medians):
        with RunRecords(folder / "records.jsonl") as records:
            for who, median in medians.items():
                records.write(
                    "model", who=who, latency_seconds={"median": median, "low": median, "high": median}
                )

    taught = write_run(tmp_path / "teacher", with_teacher=False, teacher=None, student=None)
    latency(taught, model=0.062)
    # The third was measured on a machine that was four times as busy.
    for seed, (student, teacher) in enumerate(((0.004, 0.007), (0.005, 0.008), (0.022, 0.032))):
        run = write_run(tmp_path / f"amad-{seed}", seed=seed, teacher=str(taught / "model"))
        latency(run, student=student, teacher=teacher)
    document = documented(taught, *(tmp_path / f"amad-{seed}" for seed in range(3)))
    found = {group["name"]: group["latency_seconds"]["median"] for group in document["groups"]}
    assert found == {"teacher": 0.008, "AMAD kl": 0.005}
    assert document["teacher"]["latency_seconds"]["median"] == 0.008


def test_a_teacher_is_found_wherever_the_report_is_made(tmp_path, monkeypatch):
    taught = write_run(tmp_path / "runs" / "taught", with_teacher=False, teacher=None, student=None)
    student = write_run(tmp_path / "runs" / "student", teacher="runs/taught/model")
    other = write_run(tmp_path / "runs" / "other", with_teacher=False, teacher=None, student=None)
    monkeypatch.chdir("/")
    assert [group["name"] for group in documented(taught, student)["groups"]] == ["teacher", "AMAD kl"]
    assert [group["name"] for group in documented(other, student)["groups"]] == ["trained alone", "AMAD kl"]
