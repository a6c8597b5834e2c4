"""Runs that several processes share."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amad.records import read_records

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
LIMIT = 300


def launch(*arguments):
    """``amad`` in two processes."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "amad"]
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


@pytest.fixture
def path(amad, student_tree):
    """Without chance but that of the order, which all processes share."""
    student_tree["student"]["config"] = {"dropout_rate": 0.0}
    student_tree["training"] |= {"max_steps": 4, "per_device_train_batch_size": 12, "eval_strategy": "steps"}
    student_tree["training"] |= {"eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    student_tree["pairing"] = "important"
    student_tree["importance"] = {"examples": 8}
    # A recipe need not say so where there is nothing else.
    del student_tree["training"]["use_cpu"]
    return amad.write(student_tree)


@pytest.mark.slow
def test_two_processes_with_half_the_batch_each_train_what_one_trains(amad, path):
    alone = amad.document("distill", path, "output=alone")
    done = launch("distill", path, "output=two", "training.per_device_train_batch_size=6", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    # One process alone speaks.
    two = json.loads(done.stdout)
    assert two["examples_seen"] == alone["examples_seen"] == 48
    assert two["curve"] == alone["curve"]
    weights = {name: load_file(Path(name, "model", "model.safetensors")) for name in ("alone", "two")}
    for name, value in weights["alone"].items():
        torch.testing.assert_close(weights["two"][name], value, rtol=0, atol=1e-5)
    events = {name: read_records(Path(name, "records.jsonl")) for name in weights}
    kinds = {name: [event["event"] for event in several] for name, several in events.items()}
    assert kinds["two"] == kinds["alone"]
    losses = {
        name: [event["loss"] for event in several if "loss_attention" in event]
        for name, several in events.items()
    }
    assert losses["two"] == pytest.approx(losses["alone"], rel=1e-4)

    # As an interruption after the first checkpoint leaves it.
    for left in ("model", "examples", "checkpoints/checkpoint-4"):
        shutil.rmtree(Path("two", left))
    done = launch("distill", path, "output=two", "training.per_device_train_batch_size=6", "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    again = load_file(Path("two", "model", "model.safetensors"))
    for name, value in weights["two"].items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)
    assert "is a run of 2 processes, and 1 would go on" in amad.refuse(
        "distill", path, "output=two", "training.per_device_train_batch_size=6", "--resume"
    )


@pytest.mark.slow
def test_what_all_processes_find_one_says(path):
    done = launch("distill", path, "output=two", "data.root=nowhere")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert not Path("two").exists()


@pytest.mark.slow
def test_ground_truth_alone_is_shared_too_and_one_process_looks_at_what_the_teacher_does(path):
    done = launch("train", path, "output=two", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["examples_seen"] == 4 * 2 * 12
    kept = [event for event in read_records(Path("two", "records.jsonl")) if "sample_score" in event]
    assert {event["who"] for event in kept} == {"student", "teacher"}
