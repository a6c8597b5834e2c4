"""Captioning and translation, from scenes to scores, with each command."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from amad.recipe import load_recipe
from amad.records import read_records
from amad.training.tasks import load_task

CAPTIONS = {
    "train": {"captions": "captions_train.json"},
    "validation": {"captions": "captions_val.json"},
    "max_input_tokens": 4,
    "max_target_tokens": 24,
}
TRANSLATION = {"validation": "val", "max_input_tokens": 40, "max_target_tokens": 40}
DATA = {"captions": CAPTIONS, "translation": TRANSLATION}
FIGURES = {"captions": ["CIDEr", "Bleu_4"], "translation": ["BLEU"]}
RESULTS = {"captions": "results.json", "translation": "results.txt"}


@pytest.fixture(params=DATA)
def tree(request, teacher_tree, scenes):
    teacher_tree["training"] |= {"per_device_train_batch_size": 30}
    return teacher_tree | {"task": request.param, "data": {"root": str(scenes), **DATA[request.param]}}


def scored_by_hand(amad, task, scenes, results):
    if task == "translation":
        return amad.document(
            "score", task, "--references", scenes / "val.de", "--hypotheses", results, "--lowercase"
        )
    return amad.document(
        "score", task, "--references", scenes / "captions_val.json", "--results", results, "--no-meteor"
    )


def test_what_was_learned_by_heart_is_said_written_and_scored(amad, tree, scenes):
    task = tree["task"]
    # It learns the validation set, so that this compares more than zeros.
    tree["data"] |= {"train": tree["data"]["validation"], "max_validation_examples": 4}
    tree["training"] |= {"max_steps": 150, "eval_strategy": "steps", "eval_steps": 100}
    tree["model"]["config"] |= {"d_model": 32, "d_kv": 8, "d_ff": 64, "dropout_rate": 0.0}
    path = amad.write(tree)
    trained = amad.document("train", path)
    told = amad.document("evaluate", path)
    main, *_ = FIGURES[task]
    assert [examples > 0 for examples, _ in trained["curve"]] == [True, True]
    assert trained["curve"][-1][1] == pytest.approx(trained[main], abs=0.005)
    (final,) = [event for event in read_records("teacher/records.jsonl") if event.get("final")]
    assert {name: final[name] for name in FIGURES[task]} == {name: trained[name] for name in FIGURES[task]}
    assert final["signature"] == told["signature"]

    assert told["results"] == f"teacher/{RESULTS[task]}"
    assert told["images" if task == "captions" else "sentences"] == 6
    scored = scored_by_hand(amad, task, scenes, told["results"])
    for name in FIGURES[task]:
        assert scored[name] == pytest.approx(told[name])
    assert told[main] > {"CIDEr": 1, "BLEU": 20}[main]
    # While training, the first four were scored.
    written = Path(told["results"]).read_text()
    said = [row["caption"] for row in json.loads(written)] if task == "captions" else written.splitlines()
    first = load_task(load_recipe(path).data, 0, np.asarray).score(said[:4])
    assert trained[main] == pytest.approx(first[main], abs=0.005)
    assert told["signature"] in amad.succeed("evaluate", path)


def test_the_recipe_decides_how_to_decode_while_training_and_afterwards(amad, tree):
    tree["data"] |= {"train": tree["data"]["validation"]}
    tree["training"] |= {"max_steps": 30, "generation_num_beams": 4, "generation_max_length": 20}
    tree["model"]["config"] |= {"d_model": 32, "d_kv": 8, "d_ff": 64}
    path = amad.write(tree)
    trained = amad.document("train", path)
    told = amad.document("evaluate", path)
    assert (told["max_length"], told["num_beams"]) == (20, 4)
    for name in FIGURES[tree["task"]]:
        assert told[name] == pytest.approx(trained[name], abs=0.005) != 0
    said = []
    for override in ("training.generation_num_beams=1", "training.generation_max_length=5"):
        amad.succeed("evaluate", path, override, "--results", "other")
        said.append(Path("other").read_text())
    assert len({Path(told["results"]).read_text(), *said}) == 3


def test_a_student_is_distilled_in_either_task(amad, tree):
    teacher = amad.document("train", amad.write(tree))
    del tree["model"]
    tree |= {
        "output": "student",
        "teacher": teacher["model"],
        "student": {"heads": 2, "layers": 0.5, "width": 0.5},
    }
    path = amad.write(tree)
    plan = amad.document("distill", path, "--dry-run")
    assert plan["pairs"]
    of = {"captions": ("captions", "images", 270), "translation": ("sentences", "sentences", 54)}[
        tree["task"]
    ]
    assert plan["summary"][f"training {of[0]}"] == of[2]
    assert plan["summary"][f"validation {of[1]}"] == 6
    told = amad.document("distill", path, "training.save_strategy=steps", "training.save_steps=2")
    assert told["parameters"] < teacher["parameters"]
    assert set(FIGURES[tree["task"]]) <= told.keys()
    (final,) = [event for event in read_records("student/records.jsonl") if event.get("final")]
    assert set(FIGURES[tree["task"]]) <= final.keys()
    losses = [event for event in read_records("student/records.jsonl") if "loss" in event]
    assert all(event["loss_attention"] > 0 for event in losses)
    # One epoch of translation is two steps: data sets without epochs of their own are resumed too.
    more = amad.document(
        "distill",
        path,
        "--resume",
        "training.max_steps=4",
        "training.save_strategy=steps",
        "training.save_steps=2",
    )
    assert more["examples_seen"] > told["examples_seen"]


def test_a_missing_scorer_is_refused_before_training(amad, tree, monkeypatch):
    for package in ("pycocoevalcap", "sacrebleu"):
        monkeypatch.setitem(sys.modules, package, None)
    path = amad.write(tree)
    for arguments in (("train", path), ("train", path, "--dry-run")):
        assert "Run pip install 'amad[metrics]'" in amad.refuse(*arguments)
    assert not Path("teacher").exists()


def test_without_a_validation_set_there_is_nothing_to_score(amad, tree, taught):
    del tree["data"]["validation"]
    path = amad.write(tree)
    message = amad.refuse("evaluate", path, "--model", taught.model)
    assert "the recipe has no data.validation, so there is nothing to score. Add it." in message
    message = amad.refuse("train", path, "training.eval_strategy=steps", "training.eval_steps=1")
    assert "Give data.validation, or leave training.eval_strategy out" in message


def test_images_without_captions_are_captioned_and_not_scored(amad, teacher_tree, own_scenes, taught):
    document = json.loads((own_scenes / "captions_val.json").read_text())
    del document["annotations"]
    (own_scenes / "captions_val.json").unlink()
    (own_scenes / "captions_val.json").write_text(json.dumps(document))
    path = amad.write(teacher_tree | {"task": "captions", "data": {"root": str(own_scenes), **CAPTIONS}})
    told = amad.document("evaluate", path, "--model", taught.model, "--results", "r.json")
    assert told["CIDEr"] is None
    assert told["Bleu_4"] is None
    rows = json.loads(Path("r.json").read_text())
    assert [row["image_id"] for row in rows] == [image["id"] for image in document["images"]]
    assert "no captions to score with" in amad.succeed("evaluate", path, "--model", taught.model)
