import json
import shutil

import pytest
import torch

from amad.cli.bench_models import _short_names
from amad.evaluation import bench_measuring, bench_models


@pytest.fixture
def in_this_process(monkeypatch):
    def call(function, *arguments, on_progress=bench_measuring.silent):
        return function(*arguments, on_progress)

    monkeypatch.setattr(bench_models, "in_own_process", call)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


MODELS_BENCH = ("bench", "models", "--device", "cpu", "--repeats", 2, "--largest-batch", 1)


def test_models_side_by_side_on_random_inputs(amad, taught, in_this_process, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(taught.model, other)
    shown = " ".join(amad.succeed(*MODELS_BENCH, taught.model, other, "--new-tokens", 2).split())
    for told in (
        "ratios to model",
        "each generates exactly 2 tokens, on random images and 20 random words",
        "a multiplication with its addition is 2 FLOP",
        "model, other: no larger batch was tried",
        "CPU time of one thread",
    ):
        assert told in shown
    rows = {
        line.split("│")[1].strip(): line.split("│")[2:] for line in shown.replace("│ │", "│\n│").splitlines()
    }
    assert [cell.strip() for cell in rows["parameters"][1:4]] == [
        rows["parameters"][0].strip(),
        "1.00",
        "fewer",
    ]


def test_models_on_the_data_of_a_recipe(amad, taught, student_tree, in_this_process):
    path = amad.write(student_tree)
    told = amad.document(*MODELS_BENCH, taught.model, "--recipe", path)
    assert told["recipe"] == str(path)
    assert told["inputs"] == "recipe"
    # The recipe's longest answer.
    assert told["new_tokens"] == 3
    (one,) = told["models"].values()
    assert one["parameters"] == taught.result["parameters"]
    assert told["ratios"] == {}
    shown = amad.succeed(*MODELS_BENCH, taught.model, "--recipe", path)
    assert f"on the validation data of {path}" in " ".join(shown.split())


def test_checkpoints_are_named_by_what_tells_them_apart():
    def short(*paths):
        return _short_names(paths)

    assert short("runs/teacher/model", "runs/student/model") == ["teacher", "student"]
    assert short("runs/teacher/model", "small") == ["model", "small"]
    assert short("a/x/model", "b/x/model") == ["a", "b"]
    assert short("a/x", "b/y", "c/x") == ["a/x", "b/y", "c/x"]
    assert short("runs/teacher/model") == ["runs/teacher/model"]


def test_a_checkpoint_that_is_named_twice_is_refused(amad, taught):
    assert "is named twice" in amad.refuse(*MODELS_BENCH, taught.model, taught.model)


def test_what_cannot_be_is_refused_before_anything_is_loaded(amad):
    assert "new-tokens = 0: give 1 or more" in amad.refuse(*MODELS_BENCH, "x", "--new-tokens", 0)
    assert "at least two rounds" in amad.refuse(*MODELS_BENCH, "x", "--repeats", 1)
    assert "There is no folder ./nowhere" in amad.refuse(*MODELS_BENCH, "./nowhere")


@pytest.mark.slow
def test_models_in_processes_of_their_own(amad, taught):
    done = amad.call(*MODELS_BENCH, taught.model, "--json")
    assert done.exit_code == 0, done.stderr
    (one,) = json.loads(done.stdout)["models"].values()
    assert one["flops"] > 0
    assert one["peak_extra_bytes"] >= 0
