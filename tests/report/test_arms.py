"""Runs of a comparison in a report: its names, its baseline first, and the figures that it reports."""

import json

import pytest
import yaml
from story import write_run

from amad.errors import DataError
from amad.report.arms import find_arm
from amad.report.document import build_document
from amad.report.page import render
from amad.report.run import find_runs, read_run


def metrics(folder, value):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.metrics.json").write_text(json.dumps({"accuracy": value}))


def write_comparison(folder, scores, baseline, teacher=90.0, teacher_while_training=80.0):
    """Two seeds of each arm; ``scores`` are what was reported, and validated was ten points more."""
    folder.mkdir(parents=True)
    arms = [{"label": label, "method": "amad", "overrides": []} for label in scores]
    (folder / "compare.yaml").write_text(
        yaml.safe_dump({"recipe": {}, "arms": arms, "baseline": baseline, "n_seeds": 2})
    )
    for label, values in scores.items():
        for seed, value in enumerate(values):
            run = write_run(folder / "runs" / label / f"seed-{seed}", accuracy=value + 10, seed=seed)
            metrics(run, value)
            (folder / "runs" / label / f"seed-{seed}.log").touch()
    metrics(folder / "teacher", teacher)
    metrics(folder / "teacher-on-validation", teacher_while_training)
    return folder


@pytest.fixture
def comparison(tmp_path):
    scores = {"none": (40.0, 44.0), "amad": (60.0, 62.0), "amad+hidden": (70.0, 71.0)}
    return write_comparison(tmp_path / "scenes", scores, baseline="amad")


def documented(*paths):
    return build_document([read_run(folder) for folder in find_runs(list(paths))], "scenes")


def test_a_comparison_stands_for_its_runs_under_its_names_with_the_baseline_first(comparison):
    document = documented(comparison)
    assert [group["name"] for group in document["groups"]] == ["amad", "none", "amad+hidden"]
    assert [(row["of"], row["less"]) for row in document["differences"]] == [
        ("none", "amad"),
        ("amad+hidden", "amad"),
    ]
    # As settings the two arms are one method with four runs, and so they would be shown.
    assert [group["n_runs"] for group in document["groups"]] == [2, 2, 2]
    page = render(document)
    assert "amad+hidden less amad, at equal seeds: +9.5" in page
    assert "Scores are those that amad compare reports" in page


def test_runs_that_a_shell_names_are_found_in_their_comparison_too(comparison):
    document = documented(*sorted(comparison.glob("runs/*/*")))
    assert [group["name"] for group in document["groups"]] == ["amad", "amad+hidden", "none"]


def test_scores_are_what_the_comparison_reports_and_so_is_the_teachers(comparison):
    document = documented(comparison)
    amad = document["groups"][0]
    assert amad["score"]["mean"] == 61
    assert document["teacher"]["score"] == 90
    assert amad["share"] == pytest.approx(100 * 61 / 90)
    # Curves are of other examples, on which the teacher has 80: only the second gets to nine tenths, with 72.
    assert amad["reached"] == {"n": 1, "of": 2, "examples": None}
    assert [run["score"] for run in document["runs"][:2]] == [60, 62]


def test_where_each_seed_has_a_teacher_its_own_figure_counts(comparison):
    for seed, value in enumerate((88.0, 92.0)):
        metrics(comparison / "teacher" / f"seed-{seed}", value)
    arms = [find_arm(folder, "accuracy") for folder in find_runs([comparison])[:2]]
    assert [arm.teacher for arm in arms] == [88, 92]


def test_two_comparisons_in_one_report_are_told_apart(comparison, tmp_path):
    other = write_comparison(tmp_path / "other", {"none": (1.0, 2.0), "amad": (3.0, 4.0)}, baseline="none")
    names = [group["name"] for group in documented(comparison, other)["groups"]]
    assert names == ["scenes: amad", "other: none", "scenes: none", "scenes: amad+hidden", "other: amad"]


def test_a_run_that_was_not_evaluated_yet_has_no_score_and_is_named(comparison):
    (comparison / "runs/amad/seed-0/results.metrics.json").unlink()
    document = documented(comparison)
    # Its 70 on what it was validated on is not what the others are reported on.
    assert document["groups"][0]["score"]["mean"] == 62
    assert document["runs"][0]["score"] is None
    assert "amad/seed-0 has not been evaluated" in render(document)


def test_when_the_target_was_reached_is_the_median_over_runs_with_each_its_own_teacher(comparison):
    for seed, value in enumerate((10.0, 50.0)):
        metrics(comparison / "teacher-on-validation" / f"seed-{seed}", value)
    document = documented(comparison)
    curves = {run["name"]: run for run in document["runs"]}
    assert len(curves) == 6
    runs = [read_run(folder) for folder in find_runs([comparison])[:2]]
    first = [
        next(examples for _, examples, score in run.curve if score >= 0.9 * teacher)
        for run, teacher in zip(runs, (10.0, 50.0), strict=True)
    ]
    assert first[0] < first[1]
    assert document["groups"][0]["reached"] == {"n": 2, "of": 2, "examples": first[1]}
    assert f"{first[1]:,}" in render(document)


def test_what_is_no_comparison_is_no_arm(tmp_path):
    run = write_run(tmp_path / "runs" / "amad" / "seed-0")
    assert find_arm(run, "accuracy") is None


@pytest.mark.parametrize("name", ["compare.yaml", "runs/amad/seed-0/results.metrics.json"])
def test_broken_files_of_a_comparison_are_named(comparison, name):
    (comparison / name).write_text("[1, 2")
    with pytest.raises(DataError, match=r"is not what amad (compare|evaluate) writes"):
        documented(comparison)


def test_a_comparison_without_a_run_says_what_makes_them(tmp_path):
    folder = write_comparison(tmp_path / "scenes", {"none": (), "amad": ()}, baseline="none")
    with pytest.raises(
        DataError, match=r"no run of the comparison .* has begun\. amad compare .* makes them"
    ):
        find_runs([folder])
