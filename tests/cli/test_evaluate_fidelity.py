"""``amad evaluate --fidelity``: the figures of a student beside its teacher, for each task."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from amad.metrics.fidelity import agreement


@pytest.fixture
def learned(amad, student_tree):
    """A recipe that distils, and a student that learned the validation questions by heart."""
    student_tree["data"]["train"] = student_tree["data"]["validation"]
    path = amad.write(student_tree)
    amad.succeed(
        "train", path, "training.max_steps=40", "training.per_device_train_batch_size=24", "student.width=1.0"
    )
    return path


def answers(path):
    return [row["answer"] for row in json.loads(Path(path).read_text())]


def test_figures_are_those_of_what_both_said(amad, learned, taught):
    told = amad.document("evaluate", learned, "--fidelity")
    found = told["fidelity"]
    teacher = amad.document("evaluate", learned, "--model", taught.model, "--results", "teacher.json")
    assert found["teacher"] == {"model": str(taught.model), "accuracy": teacher["accuracy"]}
    said = answers(told["results"]), answers("teacher.json")
    assert found["agreement_percent"] == agreement(*said).percent < 100
    low, high = found["agreement_interval_percent"]
    assert low < found["agreement_percent"] < high
    assert found["n_tokens"] >= told["questions"]
    assert 0 <= found["token_agreement_percent"] <= 100
    assert found["kl_nats_per_token"] > 0
    for who, model in (("student", told), ("teacher", teacher)):
        known = found["calibration"][who]
        assert known["tokens"]["n"] == found["n_tokens"]
        assert known["answers"]["n"] == told["questions"]
        # Confidence is in what was said: its accuracy is the score.
        assert known["answers"]["accuracy_percent"] == pytest.approx(model["accuracy"])
        assert 0 <= known["answers"]["calibration_error_percent"] <= 100
    assert json.loads(Path("student/results.metrics.json").read_text()) == told
    assert set(told["digests"]) == {"model", "data", "teacher"}
    # Nothing but the results is left of it.
    assert not list(Path("student").glob("*predictions*"))
    again = amad.document("evaluate", learned, "--fidelity", "--batch-size", 5)["fidelity"]
    assert again["kl_nats_per_token"] == pytest.approx(found["kl_nats_per_token"], rel=1e-3)


def test_a_model_and_itself_are_alike(amad, student_tree, taught):
    path = amad.write(student_tree)
    told = amad.document("evaluate", path, "--model", taught.model, "--fidelity")
    found = told["fidelity"]
    assert found["agreement_percent"] == found["token_agreement_percent"] == 100
    assert found["kl_nats_per_token"] == 0
    assert found["calibration"]["student"] == found["calibration"]["teacher"]
    assert told["accuracy"] == found["teacher"]["accuracy"]
    shown = " ".join(amad.succeed("evaluate", path, "--model", taught.model, "--fidelity").split())
    for wanted in (
        f"Fidelity to the teacher {taught.model}",
        "answers equal to the teacher's, to the letter │ 100.0 % (95 % interval",
        "KL(teacher || student) per token │ 0.0000 nats │ lower is closer",
        "whole answers: calibration error (percentage points)",
        "lower is better",
    ):
        assert wanted in shown


def test_without_answers_only_what_was_said_is_compared(amad, student_tree, taught):
    del student_tree["data"]["validation"]["annotations"]
    path = amad.write(student_tree)
    found = amad.document("evaluate", path, "--model", taught.model, "--fidelity")["fidelity"]
    assert found["agreement_percent"] == 100
    assert found["teacher"] == {"model": str(taught.model)}
    assert (found["n_tokens"], found["kl_nats_per_token"]) == (0, None)
    assert found["calibration"]["student"] == {"tokens": None, "answers": None}
    shown = " ".join(amad.succeed("evaluate", path, "--model", taught.model, "--fidelity").split())
    assert "has no ground truth, so next tokens were not compared" in shown
    assert "Each for itself" not in shown


def test_blank_images_are_blank_for_both(amad, learned, taught):
    shown = amad.document("evaluate", learned, "--fidelity")["fidelity"]
    blank = amad.document("evaluate", learned, "--fidelity", "--blank-images")["fidelity"]
    teacher = amad.document("evaluate", learned, "--model", taught.model, "--blank-images")
    assert blank["teacher"]["accuracy"] == teacher["accuracy"]
    assert blank["kl_nats_per_token"] != shown["kl_nats_per_token"]


def test_captions_have_no_calibration_of_the_whole(amad, student_tree, scenes, taught):
    student_tree |= {
        "task": "captions",
        "data": {
            "root": str(scenes),
            "train": {"captions": "captions_train.json"},
            "validation": {"captions": "captions_val.json"},
            "max_input_tokens": 4,
            "max_target_tokens": 8,
        },
    }
    path = amad.write(student_tree)
    told = amad.document("evaluate", path, "--model", taught.model, "--fidelity")
    assert set(told["fidelity"]["calibration"]["student"]) == {"tokens"}
    assert set(told["fidelity"]["teacher"]) == {"model", "CIDEr", "Bleu_4", "signature"}
    # Both the number of images and whether they were shown are told.
    assert (told["images"], told["blank_images"]) == (6, False)
    shown = " ".join(amad.succeed("evaluate", path, "--model", taught.model, "--fidelity").split())
    assert "captions equal to the teacher's" in shown
    assert "CIDEr-D (0 to 10, higher is better)" in shown


def test_a_recipe_without_a_teacher_has_none_to_compare_with(amad, teacher_tree, taught):
    path = amad.write(teacher_tree)
    message = amad.refuse("evaluate", path, "--model", taught.model, "--fidelity")
    assert "--fidelity compares a student with its teacher, and the recipe names no teacher" in message


def changed(taught, change):
    """A copy of the teacher that a test may break."""
    copy = Path(shutil.copytree(taught.model, "other"))
    change(copy)
    return copy


def other_words(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    path.write_text(json.dumps(tokenizer))


def more_words(folder):
    weights = load_file(folder / "model.safetensors")
    for name, one in weights.items():
        if one.shape[0] == weights["shared.weight"].shape[0]:
            weights[name] = torch.cat([one, one[:1]])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))


def larger_images(folder):
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["size"] = {"height": 48, "width": 48}
    path.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_words, "number their words differently"),
        (more_words, "vocabularies differ"),
        (larger_images, "images, and the model's have image_size (48, 48), those of the teacher"),
    ],
)
def test_a_model_that_reads_otherwise_than_its_teacher_is_refused(
    amad, student_tree, taught, change, message
):
    path = amad.write(student_tree)
    other = changed(taught, change)
    assert message in amad.refuse("evaluate", path, "--model", other, "--fidelity")


def test_a_teacher_that_is_not_there_is_refused_before_anything_is_decoded(amad, student_tree, taught):
    path = amad.write(student_tree | {"teacher": "./gone"})
    message = amad.refuse("evaluate", path, "--model", taught.model, "--results", "r.json", "--fidelity")
    assert "There is no folder ./gone" in message
    assert not Path("r.predictions").exists()
