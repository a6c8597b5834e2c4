import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import amad.models.vlt5  # noqa: F401 - registers the model type
from amad.recipe import load_recipe
from amad.records import read_records
from amad.training.callbacks import KeptRecords


def test_training_a_teacher_leaves_a_checkpoint_records_and_the_resolved_recipe(taught):
    assert {path.name for path in taught.folder.iterdir()} == {"model", "recipe.yaml", "records.jsonl"}
    assert taught.result["model"] == str(taught.model)
    assert taught.result["examples_seen"] == 108
    model = AutoModelForSeq2SeqLM.from_pretrained(taught.model)
    assert sum(parameter.numel() for parameter in model.parameters()) == taught.result["parameters"]
    assert load_recipe(taught.folder / "recipe.yaml").model is not None
    steps = [record for record in read_records(taught.folder / "records.jsonl") if record["event"] == "step"]
    assert [step["examples"] for step in steps if "loss" in step] == [36, 72, 108]


def test_a_distilled_student_is_smaller_has_learned_and_loads_with_plain_transformers(
    amad, student_tree, taught
):
    result = amad.document("distill", amad.write(student_tree))
    student, info = AutoModelForSeq2SeqLM.from_pretrained(result["model"], output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    teacher = AutoModelForSeq2SeqLM.from_pretrained(taught.model).config
    assert (student.config.num_heads, student.config.num_layers, student.config.d_model) == (2, 1, 8)
    assert (teacher.num_heads, teacher.num_layers, teacher.d_model) == (4, 2, 16)
    events = read_records("student/records.jsonl")
    losses = [event for event in events if event["event"] == "step" and "loss_attention" in event]
    assert len(losses) == 3
    assert losses[-1]["loss"] < losses[0]["loss"]
    pairs = {
        (e["stack"], e["student_layer"], e["teacher_layer"]) for e in events if e["event"] == "alignment"
    }
    assert pairs == {("encoder.self", 0, 1), ("decoder.self", 0, 1), ("decoder.cross", 0, 1)}


def test_a_student_without_its_teacher_starts_the_same_and_learns_from_the_ground_truth_alone(
    amad, student_tree
):
    path = amad.write(student_tree | {"output": "alone"})
    amad.document("train", path)
    events = read_records("alone/records.jsonl")
    step = next(event for event in events if event["event"] == "step")
    assert step["share_task"] == 1.0
    assert "loss_attention" not in step
    amad.document("distill", path, "output=both", "training.learning_rate=0")
    amad.document("train", path, "output=still", "training.learning_rate=0")
    both, still = (load_file(f"{name}/model/model.safetensors") for name in ("both", "still"))
    assert all(both[name].equal(still[name]) for name in both)
    starts = {
        event["start"]
        for name in ("alone", "both", "still")
        for event in read_records(f"{name}/records.jsonl")
        if event["event"] == "seeds"
    }
    assert len(starts) == 1


def test_a_projected_run_works_though_questions_differ_in_length(amad, student_tree):
    result = amad.document("distill", amad.write(student_tree), "objective.attention.variant=projected")
    assert {name.split(".")[0] for name in load_file(Path(result["model"]) / "model.safetensors")} <= {
        "shared",
        "encoder",
        "decoder",
        "lm_head",
    }


@pytest.mark.parametrize("command", ["train", "distill"])
def test_a_dry_run_writes_nothing_and_tells_steps_sites_and_pairs(amad, student_tree, tmp_path, command):
    path = amad.write(student_tree)
    before = amad.snapshot(tmp_path)
    plan = amad.document(command, path, "--dry-run")
    assert amad.snapshot(tmp_path) == before
    assert not Path("student").exists()
    assert plan["summary"]["optimiser steps"] == 3
    assert plan["summary"]["training questions"] == 216
    assert {
        "model": "teacher",
        "stack": "decoder.cross",
        "layers": 2,
        "heads": "4",
        "head width": "4",
    } in plan["sites"]
    assert len(plan["pairs"]) == (3 if command == "distill" else 0)


def test_a_dry_run_counts_the_steps_of_epochs(amad, student_tree):
    student_tree["training"] |= {"max_steps": -1, "num_train_epochs": 2.5, "per_device_train_batch_size": 50}
    plan = amad.document("distill", amad.write(student_tree), "--dry-run")
    # 216 questions in batches of 50 are 5 steps; two and a half epochs are 12.5, and a begun step is done.
    assert plan["summary"]["optimiser steps"] == 13


def test_tables_are_for_people_and_go_to_standard_output(amad, student_tree):
    shown = amad.succeed("distill", amad.write(student_tree), "--dry-run")
    for words in ("Attention sites", "Who learns from whom", "decoder.cross[0]", "Plan"):
        assert words in shown


def test_an_interrupted_run_goes_on_to_the_same_weights_to_the_bit(amad, student_tree, monkeypatch):
    # Six steps an epoch: the checkpoint lies in the middle of the second, whose answers are sampled anew.
    student_tree["training"] |= {"max_steps": 11, "save_strategy": "steps", "save_steps": 8}
    path = amad.write(student_tree)
    straight = amad.document("distill", path, "output=straight")

    log = KeptRecords.on_log

    def interrupt(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 9:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(KeptRecords, "on_log", interrupt)
        stopped = amad.call("distill", path, "output=resumed", "--json")
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "checkpoint-8" in stopped.stderr
    assert "--resume" in stopped.stderr
    assert not Path("resumed/model").exists()

    resumed = amad.document("distill", path, "output=resumed", "--resume")
    assert resumed["accuracy"] == straight["accuracy"]
    assert resumed["curve"] == straight["curve"]
    weights = [Path(name, "model", "model.safetensors").read_bytes() for name in ("straight", "resumed")]
    assert weights[0] == weights[1]
    notes = [event for event in read_records("resumed/records.jsonl") if "resumed_from" in event]
    assert [note["resumed_from"] for note in notes] == ["checkpoint-8"]


def test_an_interruption_before_the_first_checkpoint_says_so(amad, teacher_tree, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(KeptRecords, "on_log", interrupt)
    stopped = amad.call("train", amad.write(teacher_tree))
    assert stopped.exit_code == 130
    assert "before a first checkpoint" in stopped.stderr
    assert not Path("teacher/checkpoints").exists()
    assert read_records("teacher/records.jsonl")[0]["event"] == "recipe"


def test_resuming_passes_over_a_checkpoint_that_was_not_finished(amad, teacher_tree):
    teacher_tree["training"] |= {"save_strategy": "steps", "save_steps": 1}
    path = amad.write(teacher_tree)
    amad.document("train", path)
    Path("teacher/checkpoints/checkpoint-3/trainer_state.json").unlink()
    amad.document("train", path, "--resume")
    notes = [event for event in read_records("teacher/records.jsonl") if "resumed_from" in event]
    assert [note["resumed_from"] for note in notes] == ["checkpoint-2"]


def test_one_json_document_is_all_that_a_process_prints(amad, student_tree, tmp_path):
    path = amad.write(student_tree)
    command = [sys.executable, "-c", "from amad.cli.app import main; main()"]
    done = subprocess.run(
        [*command, "distill", str(path), "--json"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == "student"
    assert "warning" not in done.stderr.lower()


def test_what_is_stored_with_a_run_repeats_it(amad, student_tree):
    amad.document("distill", amad.write(student_tree))
    stored = yaml.safe_load(Path("student/recipe.yaml").read_text())
    assert stored["objective"]["attention"]["variant"] == "kl"
    amad.document("distill", "student/recipe.yaml", "output=again")
    first, second = (Path(name, "model/model.safetensors").read_bytes() for name in ("student", "again"))
    assert first == second
