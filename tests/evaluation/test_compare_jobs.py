import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from amad.evaluation.compare_jobs import Job, last_lines, remaining, run_jobs
from amad.recipe import load_recipe
from amad.records import RunRecords, claimed


def lines(comparison, folder):
    return [job.line for job in remaining(comparison, folder).ready]


def test_a_run_is_one_line_that_grows_shorter_as_it_gets_on(describe, leave, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    one = describe.comparison("none", "amad", n_seeds=1)
    assert lines(one, out) == [
        "amad evaluate out/recipe.yaml --model t --results out/teacher/results.json",
        "amad train out/runs/none/seed-0.yaml && amad evaluate out/runs/none/seed-0.yaml",
        "amad distill out/runs/amad/seed-0.yaml && amad evaluate out/runs/amad/seed-0.yaml",
    ]
    leave.evaluated(out / "teacher", 80.0)
    leave.finish(one.runs(out, one.arms[0], ())[0], 50.0)
    amad = one.runs(out, one.arms[1], ())[0]
    with leave.begin(amad):
        assert lines(one, out) == ["amad evaluate out/runs/none/seed-0.yaml"]
        assert remaining(one, out).running == ("amad, seed 0",)
    assert lines(one, out)[1] == (
        "amad distill out/runs/amad/seed-0.yaml --resume && amad evaluate out/runs/amad/seed-0.yaml"
    )
    with RunRecords(amad.folder / "records.jsonl") as records:
        leave.end(records, 60.0)
    for arm in one.arms:
        leave.evaluated(one.runs(out, arm, ())[0].folder, 50.0)
    assert lines(one, out) == []


def test_the_recipe_of_a_line_is_the_run_that_was_planned(describe, tmp_path):
    one = describe.comparison("none", "amad")
    remaining(one, tmp_path)
    for arm in one.arms:
        for run in one.runs(tmp_path, arm, ()):
            assert load_recipe(run.recipe_file) == run.recipe
    assert load_recipe(tmp_path / "recipe.yaml") == one.recipe


def test_words_of_a_line_survive_a_shell(describe, tmp_path):
    report = ("data.holdout=null", "data.validation={questions: a b.json}")
    one = describe.comparison("none", "amad", n_seeds=1, report=report)
    line = lines(one, tmp_path / "a folder")[1]
    words = subprocess.run(
        ["sh", "-c", f"amad() {{ printf '%s\\n' \"$@\"; }}; {line}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words[:2] == ["evaluate", f"{tmp_path}/a folder/recipe.yaml"]
    assert "--results" in words
    reported = lines(one, tmp_path / "a folder")[0]
    assert "'data.validation={questions: a b.json}'" in reported
    assert (
        list(report)[1]
        in subprocess.run(
            ["sh", "-c", f"amad() {{ printf '%s\\n' \"$@\"; }}; {reported}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    )


def test_trials_come_first_and_all_arms_have_a_seed_before_the_next(describe, leave, tmp_path):
    one = describe.comparison("none", "logits", "amad", search={"weight": (1, 2)})
    left = remaining(one, tmp_path)
    assert [job.name for job in left.ready] == [
        "teacher",
        *(f"{arm}, trial {number}" for arm in ("logits", "amad") for number in (0, 1)),
        "none, seed 0",
        "none, seed 1",
    ]
    assert left.waiting == ("logits", "logits", "amad", "amad")
    for arm in one.arms:
        for trial in one.trials(tmp_path, arm):
            leave.finish(trial, 30.0)
    assert [job.name for job in remaining(one, tmp_path).ready][1:] == [
        f"{arm}, seed {seed}" for seed in (0, 1) for arm in ("none", "logits", "amad")
    ]


def test_where_training_evaluates_on_a_part_the_teacher_is_scored_on_it_too(describe, tmp_path):
    recipe = describe.recipe()
    limited = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"max_validation_questions": 5})}
    )
    found = lines(describe.comparison("none", "amad", recipe=limited), tmp_path / "a")[:2]
    assert ["--as-validated" in line for line in found] == [False, True]
    assert "teacher-on-validation/results.json" in found[1]
    whole = lines(describe.comparison("none", "amad"), tmp_path / "b")
    assert not any("--as-validated" in line for line in whole)


def test_where_each_seed_has_a_teacher_all_of_them_are_scored(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", recipe=describe.recipe(teacher="t-{seed}"))
    found = [line for line in lines(one, tmp_path) if "--model" in line]
    assert ["--model t-0 " in line for line in found] == [True, False]
    assert ["--model t-1 " in line for line in found] == [False, True]
    assert "teacher/seed-1/results.json" in found[1]
    leave.evaluated(tmp_path / "teacher/seed-0", 80.0)
    jobs = remaining(one, tmp_path).ready
    assert [job.name for job in jobs if job.run is None] == ["the teacher, seed 1"]


def test_a_translation_has_lines_as_results(describe, tmp_path):
    data = {"root": "d", "validation": "val"}
    one = describe.comparison("none", "amad", recipe=describe.recipe(task="translation", data=data))
    assert "/teacher/results.txt" in lines(one, tmp_path)[0]


def job(name, *commands, folder):
    return Job(name, "kind", commands, folder / f"{name}.log", folder)


def test_jobs_run_their_commands_in_turn_until_one_fails(tmp_path):
    jobs = [
        job("good", ("--version",), ("--version",), folder=tmp_path),
        job("bad", ("nonsense",), ("--version",), folder=tmp_path),
        job("after", ("--version",), folder=tmp_path),
    ]
    ended = {}
    run_jobs(
        lambda: jobs, 2, on_end=lambda one, status, seconds: ended.update({one.name: status}), on_tick=len
    )
    assert ended == {"good": 0, "bad": 2, "after": 0}
    said = (tmp_path / "good.log").read_text().splitlines()
    assert said[0] == said[2] == "$ amad --version"
    assert said[1] == said[3]
    assert said[1].startswith("amad ")
    assert "No such command 'nonsense'" in last_lines(tmp_path / "bad.log")
    assert "$ amad --version" not in (tmp_path / "bad.log").read_text()


def test_never_more_jobs_at_a_time_and_what_becomes_ready_is_done(tmp_path):
    jobs = [job(f"job-{number}", ("--version",), folder=tmp_path) for number in range(4)]
    ended, active = [], []
    run_jobs(
        lambda: jobs[: 2 + len(ended)],
        2,
        on_end=lambda one, status, seconds: ended.append(one.name),
        on_tick=lambda several: active.append(len(several)),
    )
    assert sorted(ended) == [one.name for one in jobs]
    assert max(active) == 2


def test_a_job_that_another_comparison_took_first_is_left_to_it(tmp_path):
    jobs = [job(name, ("--version",), folder=tmp_path) for name in ("taken", "free")]
    ended, asked = [], []

    def ready():
        # The other one took it between looking and beginning.
        asked.append(len(asked))
        return jobs if len(asked) == 1 else [one for one in jobs if not one.is_claimed]

    def make():
        run_jobs(ready, 2, on_end=lambda one, *_: ended.append(one.name), on_tick=len)

    assert not jobs[0].is_claimed
    with claimed(jobs[0].claim):
        assert jobs[0].is_claimed
        make()
    assert ended == ["free"]
    assert not (tmp_path / "taken.log").exists()
    assert not any(one.is_claimed for one in jobs)
    make()
    assert sorted(ended) == ["free", "free", "taken"]


def test_what_is_left_of_a_job_is_seen_once_it_is_claimed(describe, leave, tmp_path):
    one = describe.comparison("none", "amad", n_seeds=1)
    _, first, second = remaining(one, tmp_path).ready
    leave.finish(first.run, 50.0)
    assert [command[0] for command in first.left()] == ["evaluate"]
    leave.evaluated(first.run.folder, 50.0)
    assert first.left() == ()
    assert second.left() == second.commands


def test_what_another_comparison_is_at_is_running_and_not_ready(describe, tmp_path):
    one = describe.comparison("none", "amad", n_seeds=1)
    teacher, first, second = remaining(one, tmp_path).ready
    for one_job in (teacher, first):
        one_job.log.parent.mkdir(parents=True, exist_ok=True)
    with claimed(teacher.claim), claimed(first.claim):
        left = remaining(one, tmp_path)
        assert (left.ready, left.running) == ((second,), ("none, seed 0",))
    assert remaining(one, tmp_path).ready == (teacher, first, second)


@pytest.fixture
def heeded():
    """Interruptions are heeded, also where tests run in the background of a shell, which has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_no_process_behind(tmp_path, number, heeded):
    place = str(tmp_path / "scenes")

    def listed():
        return (
            place
            in subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        )

    def interrupt(several):
        if listed():
            os.kill(os.getpid(), number)

    jobs = [
        job("long", ("data", "shapes", place, "--images", "1000000"), folder=tmp_path),
        job("next", ("--version",), folder=tmp_path),
    ]
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(lambda: jobs, 1, on_end=lambda *ended: None, on_tick=interrupt)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (tmp_path / "next.log").exists()
    assert not listed()


def test_runs_at_a_time_share_the_cores_unless_told_otherwise(tmp_path, monkeypatch):
    from amad.evaluation.compare_jobs import _Processes

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert "OMP_NUM_THREADS" not in _Processes(1).environment
    assert _Processes(3).environment["OMP_NUM_THREADS"] == "2"
    assert _Processes(16).environment["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _Processes(4).environment["OMP_NUM_THREADS"] == "5"


def test_each_job_sees_the_gpu_that_has_the_fewest_and_only_where_there_is_a_choice(monkeypatch):
    from amad.evaluation.compare_jobs import _Devices, visible_devices

    devices = _Devices(["2", "GPU-a"])
    with devices.one() as first, devices.one() as second:
        assert (first, second) == ({"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "GPU-a"})
        with devices.one() as third:
            assert third == first
    with devices.one() as again:
        assert again == first
    for only in ([], ["0"]):
        with _Devices(only).one() as nothing:
            assert nothing == {}

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 1")
    assert visible_devices() == ["3", "1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    assert visible_devices() == ["MIG-a", "MIG-b"]


def test_a_job_finds_its_gpu_in_its_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    # In the place of Python: what the process is given is what counts.
    shown = tmp_path / "shown"
    shown.write_text("#!/bin/sh\necho sees $CUDA_VISIBLE_DEVICES; sleep 1\n")
    shown.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(shown))
    jobs = [job(name, ("--version",), folder=tmp_path) for name in ("one", "other")]
    run_jobs(lambda: jobs, 2, on_end=lambda *ended: None, on_tick=len)
    assert sorted(last_lines(one.log).splitlines()[-1] for one in jobs) == ["sees 5", "sees 7"]
