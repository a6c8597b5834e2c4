import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from amad.cli.compare import KNOWN
from amad.methods import METHODS
from amad.records import read_records


@pytest.fixture
def recipe(amad, student_tree):
    student_tree["data"]["max_validation_questions"] = 10
    return amad.write(student_tree)


def shell(line):
    """Run a line as a launcher would, with the amad command of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(["sh", "-c", line], env=os.environ | {"PATH": path}, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_comparison_from_its_lines_to_its_table(amad, recipe, taught):
    describe = ("compare", recipe, "--methods", "none,amad", "--seeds", 2, "--out", "out")
    lines = amad.succeed(*describe, "--list").splitlines()
    # Of the teacher two: on all questions, and on those that training asks.
    assert len(lines) == 6
    # A launcher makes one of them ...
    done = shell(next(line for line in lines if "runs/amad/seed-1" in line))
    assert done.returncode == 0, done.stderr
    made = amad.snapshot("out/runs/amad/seed-1")
    assert lines[:5] == amad.succeed(*describe, "--list").splitlines()
    partial = amad.document(*describe, "--jobs", 0)
    assert partial["unfinished"] == 3
    # ... and the command makes the others, two at a time.
    shown = amad.call(*describe, "--jobs", 2)
    assert shown.exit_code == 0, shown.stderr
    assert "6 of 6" not in shown.stderr
    assert "5 of 5 done" in shown.stderr
    for words in ("difference from none", "share of teacher", "verdict", "teacher"):
        assert words in shown.stdout
    assert amad.snapshot("out/runs/amad/seed-1") == made

    told = amad.document("compare", "out")
    arms = {arm["label"]: arm for arm in told["arms"]}
    assert (told["unfinished"], told["examples"], told["steps"]) == (0, 108, 3)
    assert told["teacher"] == pytest.approx(taught.result["accuracy"], abs=0.005)
    for label, arm in arms.items():
        for seed, value in arm["figures"].items():
            folder = Path("out/runs", label, f"seed-{seed}")
            # All 24 validation questions, though 10 are asked while training.
            assert json.loads((folder / "results.metrics.json").read_text())["accuracy"] == value
            events = read_records(folder / "records.jsonl")
            assert ("loss_attention" in next(e for e in events if e["event"] == "step")) == (label == "amad")
    starts = {
        (run["seed"], event["start"])
        for run in told["runs"]
        for event in read_records(Path(run["folder"], "records.jsonl"))
        if event["event"] == "seeds"
    }
    assert len(starts) == 2
    assert "| amad |" in Path("out/results.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_fails_is_told_with_its_last_lines_and_stops_no_other(amad, recipe, taught, tmp_path):
    describe = (
        "compare",
        recipe,
        "--methods",
        "none",
        "--arm",
        "broken: amad pairing='{encoder.self: [[0, 7]]}'",
        "--seeds",
        1,
        "--out",
        "out",
    )
    done = amad.call(*describe)
    assert done.exit_code == 1
    assert "broken, seed 0 failed" in done.stderr
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "none, seed 0: accuracy" in done.stderr
    assert "runs not finished: 1; failed just now: " in " ".join(done.stderr.split())
    assert "| none | 1 |" in Path("out/results.md").read_text()
    # What is finished is not made again.
    shutil.rmtree(tmp_path / "out" / "teacher")
    again = amad.call("compare", "out")
    assert again.exit_code == 1
    assert "none, seed 0" not in again.stderr
    assert "teacher: accuracy" in again.stderr


def test_a_mistake_is_refused_before_anything_is_written(amad, recipe, tmp_path):
    before = amad.snapshot(tmp_path)
    for arguments, said in (
        (("--methods", "none,amda"), "method 'amda'"),
        (("training.max_step=4",), "training.max_step"),
        (("--methods", "none", "--arm", "x: amad training.learning_rat=1"), "arm 'x'"),
        (("--search", "learning_rate=fast,slow"), "learning_rate"),
        (("seed=3",), "the comparison decides seed"),
        (("teacher=./gone",), "no folder ./gone"),
        (("teacher=./gone-{seed}",), "no folder ./gone-0"),
    ):
        assert said in amad.refuse("compare", recipe, *arguments)
        assert amad.snapshot(tmp_path) == before


def test_a_recipe_without_a_teacher_has_nothing_to_compare(amad, teacher_tree):
    assert "teacher and a student" in amad.refuse("compare", amad.write(teacher_tree))


def test_a_comparison_is_not_launched_several_times(amad, recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "--jobs for several runs at a time" in amad.refuse("compare", recipe, "--out", "out")
    assert not Path("out").exists()


def test_a_folder_says_what_is_compared_and_takes_nothing_else(amad, recipe):
    amad.succeed("compare", recipe, "--out", "out", "--list")
    assert "--seeds has no place" in amad.refuse("compare", "out", "--seeds", 5)
    assert "--search-seed has no place" in amad.refuse("compare", "out", "--search-seed", 0)
    assert "key=value has no place" in amad.refuse("compare", "out", "pairing=last")
    Path("empty").mkdir()
    assert "has no compare.yaml" in amad.refuse("compare", "empty")


def test_without_a_choice_the_three_ways_are_compared_beside_the_recipes_output(amad, recipe):
    listed = amad.document("compare", recipe, "--list")
    assert len(listed["ready"]) == 2 + 3 * 3
    assert {Path(line.split()[2]).parent for line in listed["ready"][2:]} == {
        Path("student-compare/runs") / name for name in ("none", "logits", "amad")
    }


def test_a_comparison_that_grows_keeps_its_baseline(amad, recipe):
    said = ("compare", recipe, "--out", "out", "--jobs", 0, "--methods")
    assert amad.document(*said, "none,amad", "--baseline", "amad")["baseline"] == "amad"
    assert amad.document(*said, "none,amad,mean")["baseline"] == "amad"
    assert amad.document(*said, "none,amad,mean", "--baseline", "mean")["baseline"] == "mean"


def test_a_table_without_runs_can_be_had_at_once(amad, recipe):
    told = amad.document("compare", recipe, "--jobs", 0)
    assert (told["unfinished"], told["failed"], told["teacher"]) == (9, [], None)


def test_help_names_every_method():
    assert sorted(re.split(", | and ", KNOWN)) == sorted(METHODS)
