"""BLIP's pre-training, and what starts from it, with the commands."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from amad.records import read_records

CAPTIONS = {"train": {"captions": "captions_train.json"}, "validation": {"captions": "captions_val.json"}}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
BLIP = {
    "model_type": "blip",
    "image_text_hidden_size": 8,
    "vision_config": {**SIZES, "image_size": 36, "patch_size": 12},
    "text_config": {**SIZES, "max_position_embeddings": 64},
}
FIGURES = {"accuracy_match", "accuracy_contrast", "loss_match", "loss_contrast", "loss_caption"}


@pytest.fixture
def tree(teacher_tree, scenes):
    files = {key: {"captions": value} for key, value in CAPTIONS.items()}
    data = {"root": str(scenes), "max_input_tokens": 24, "max_target_tokens": 24, **files}
    return teacher_tree | {
        "task": "pretraining",
        "output": "pretrained",
        "data": data | {"tasks": {"contrast": 1, "match": 1, "caption": 1}, "augment": "crop-flip"},
        "model": {"config": BLIP},
    }


def weights(folder):
    return load_file(f"{folder}/model/model.safetensors")


def test_the_three_losses_are_learned_printed_and_recorded(amad, tree):
    result = amad.document("train", amad.write(tree), "training.eval_strategy=steps", "training.eval_steps=2")
    assert result.keys() >= FIGURES
    events = read_records("pretrained/records.jsonl")
    (final,) = [event for event in events if event.get("final")]
    assert {name: final[name] for name in FIGURES} == {name: result[name] for name in FIGURES}
    losses = [event for event in events if "loss" in event]
    for event in losses:
        parts = [event[f"loss_{task}"] for task in ("contrast", "match", "caption")]
        assert event["loss"] == pytest.approx(sum(parts), rel=1e-4)
    # Six images: the contrast of a batch is about the logarithm of its size.
    assert 0 < result["loss_contrast"] < 5
    amad.document("train", "recipe.yaml", "output=again", "data.tasks.contrast=0", "training.max_steps=1")
    (event,) = [event for event in read_records("again/records.jsonl") if "loss" in event]
    assert event["loss"] == pytest.approx(event["loss_match"] + event["loss_caption"], rel=1e-4)
    assert event["loss_contrast"] > 0


def test_fine_tuning_starts_from_the_parts_that_pre_training_left(amad, tree, teacher_tree, scenes):
    pretrained = amad.document("train", amad.write(tree))["model"]
    still = ("training.learning_rate=0", f"model={{path: {pretrained}}}")
    captions = teacher_tree | {"task": "captions", "data": {"root": str(scenes), **CAPTIONS}}
    amad.document("train", amad.write(teacher_tree), "output=vqa", *still)
    amad.document("train", amad.write(captions), "output=captions", *still)
    theirs = weights("pretrained")
    for name, kind in (("vqa", "BlipForQuestionAnswering"), ("captions", "BlipForConditionalGeneration")):
        ours = weights(name)
        assert json.loads(Path(name, "model", "config.json").read_text())["architectures"] == [kind]
        assert ours
        assert all(ours[key].equal(theirs[key]) for key in ours)
    assert amad.document("evaluate", "recipe.yaml", "output=captions")["CIDEr"] >= 0


def test_a_pre_trained_student_is_distilled(amad, tree, teacher_tree, scenes):
    small = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = BLIP | {part: BLIP[part] | small for part in ("vision_config", "text_config")}
    pretrained = amad.document("train", amad.write(tree | {"model": {"config": config}}))["model"]
    captions = teacher_tree | {"task": "captions", "data": {"root": str(scenes), **CAPTIONS}}
    taught = captions | {"model": {"config": BLIP, "tokenizer": pretrained}}
    teacher = amad.document("train", amad.write(taught), "output=taught")["model"]
    student = {key: value for key, value in captions.items() if key != "model"}
    student |= {"teacher": teacher, "student": {"path": pretrained}, "output": "student"}
    amad.document("distill", amad.write(student), "training.learning_rate=0")
    ours, theirs = weights("student"), weights("pretrained")
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_its_predictions_are_distilled_and_its_attention_is_refused(amad, tree):
    teacher = amad.document("train", amad.write(tree))["model"]
    student = {key: value for key, value in tree.items() if key != "model"}
    student |= {"teacher": teacher, "student": {"heads": 2, "layers": 0.5, "width": 0.5}, "output": "student"}
    path = amad.write(student)
    assert "reads each caption three times" in amad.refuse("distill", path)
    assert amad.document("distill", path, "objective.attention=null").keys() >= FIGURES
    losses = [event for event in read_records("student/records.jsonl") if "loss" in event]
    assert all(event["loss_logits"] > 0 for event in losses)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tasks={span: 1, match: 1}", "is pre-trained with data.tasks contrast, match and caption"),
        (
            "model.config={model_type: vlt5, visual_source: patches, image_size: 36, patch_size: 12}",
            "of BLIP",
        ),
    ],
)
def test_tasks_and_models_must_go_together(amad, tree, override, message):
    assert message in amad.refuse("train", amad.write(tree), override)


COLOURS = [
    (255, 0, 0),
    (0, 160, 0),
    (0, 0, 255),
    (255, 255, 0),
    (0, 0, 0),
    (255, 255, 255),
    (0, 255, 255),
    (255, 0, 255),
]
NAMES = ["red", "green", "blue", "yellow", "black", "white", "cyan", "pink"]


@pytest.mark.slow
def test_eight_pairs_are_learned_by_heart(amad, tree, tmp_path):
    folder = tmp_path / "walls"
    (folder / "images").mkdir(parents=True)
    images, captions = [], []
    for number, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8})
        said = (f"the wall is {name} today", f"a {name} wall", f"this is {name}")
        captions += [
            {"id": len(captions) + i, "image_id": number, "caption": text} for i, text in enumerate(said)
        ]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    files = {"captions": {"captions": "c.json"}}
    tree["data"] |= {"root": str(folder), "train": files, "validation": files, "augment": None}
    tree["model"] = {"config": BLIP | {"vision_config": {**SIZES, "image_size": 8, "patch_size": 4}}}
    tree["training"] |= {
        "max_steps": 250,
        "per_device_train_batch_size": 24,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 20,
        "logging_steps": 50,
    }
    result = amad.document("train", amad.write(tree))
    assert result["accuracy_contrast"] > 90
    assert result["accuracy_match"] > 90
    assert result["loss_caption"] < 0.5
