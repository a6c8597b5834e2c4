"""Evaluations that are killed and go on, and evaluations that several processes share."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LIMIT = 300
WAITS = """
import sys, time
from PIL import Image
name, opened = sys.argv.pop(1), Image.open
def opens(file, *arguments, **named):
    if str(getattr(file, "name", file)).endswith(name):
        time.sleep(1000)
    return opened(file, *arguments, **named)
Image.open = opens
from amad.cli.app import main
main()
"""


@pytest.fixture
def path(amad, teacher_tree, own_scenes, taught):
    """A recipe of 24 validation questions in batches of four, about one image each."""
    teacher_tree["data"]["root"] = str(own_scenes)
    teacher_tree["training"] |= {"per_device_eval_batch_size": 4, "generation_num_beams": 2}
    return amad.write(teacher_tree)


def arguments(path, taught, results):
    return ["evaluate", str(path), "--model", str(taught.model), "--results", results]


@pytest.mark.slow
def test_an_evaluation_that_is_killed_goes_on_and_ends_with_the_same_file(amad, path, own_scenes, taught):
    whole = amad.document(*arguments(path, taught, "whole.json"))
    assert (whole["decoded_now"], whole["questions"]) == (24, 24)
    assert not Path("whole.predictions").exists()

    # The process waits for ever at the last image but one, and is killed there.
    last = sorted((own_scenes / "images").glob("*val*"))[-2]
    command = [sys.executable, "-c", WAITS, last.name, *arguments(path, taught, "killed.json"), "--json"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + LIMIT
    while not Path("killed.predictions/00003.jsonl").exists():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not Path("killed.json").exists()
    assert len(list(Path("killed.predictions").glob("*.jsonl"))) == 4

    # Not with another decoding, nor with other data.
    for change in ("training.generation_num_beams=1", "data.prompt='q: {question}'"):
        message = amad.refuse(*arguments(path, taught, "killed.json"), change)
        assert "killed.predictions has predictions of an evaluation that was interrupted, with" in message
    told = amad.document(*arguments(path, taught, "killed.json"))
    assert told["decoded_now"] == 8
    assert told["accuracy"] == whole["accuracy"]
    assert Path("killed.json").read_bytes() == Path("whole.json").read_bytes()
    assert not Path("killed.predictions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("results", [[], ["--results", "two.json"]])
def test_two_processes_say_what_one_says(amad, path, taught, results):
    alone = amad.document(*arguments(path, taught, "one.json"))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "amad"]
    command = ["evaluate", str(path), "--model", str(taught.model), *results, "--json"]
    done = subprocess.run(
        [sys.executable, *launch, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # One process alone speaks.
    told = json.loads(done.stdout)
    assert (told["processes"], told["decoded_now"]) == (2, 24)
    same = ["accuracy", "questions", "max_length", "num_beams", "digests"]
    assert {name: told[name] for name in same} == {name: alone[name] for name in same}
    if results:
        assert Path("two.json").read_bytes() == Path("one.json").read_bytes()
        assert json.loads(Path("two.metrics.json").read_text()) == told
    assert sorted(os.listdir()) == sorted(
        ["one.json", "one.metrics.json", "own", "recipe.yaml"]
        + ["two.json", "two.metrics.json"] * bool(results)
    )
