"""Pre-training, and what starts from it, with the commands."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from amad.records import read_records

CAPTIONS = {
    "train": {"captions": "captions_train.json"},
    "validation": {"captions": "captions_val.json"},
    "max_input_tokens": 4,
    "max_target_tokens": 24,
}


@pytest.fixture
def tree(teacher_tree, scenes):
    questions = {key: teacher_tree["data"][key] for key in ("train", "validation")}
    files = {key: {"captions": CAPTIONS[key], "questions": questions[key]} for key in ("train", "validation")}
    data = {"root": str(scenes), "max_input_tokens": 24, **files}
    return teacher_tree | {
        "task": "pretraining",
        "output": "pretrained",
        "data": data | {"tasks": {"span": 2, "match": 1, "question": 1}},
        "objective": {"task": {"reduction": "sample"}},
    }


def weights(folder):
    return load_file(f"{folder}/model/model.safetensors")


def equal(first, second):
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_every_task_has_its_loss_and_exact_targets_printed_and_recorded(amad, tree):
    result = amad.document("train", amad.write(tree), "training.eval_strategy=steps", "training.eval_steps=2")
    figures = [f"{kind}_{task}" for kind in ("accuracy", "loss") for task in ("match", "span", "question")]
    assert set(figures) <= result.keys()
    assert [examples for examples, _ in result["curve"]] == [72, 108]
    events = read_records("pretrained/records.jsonl")
    (final,) = [event for event in events if event.get("final")]
    assert {name: final[name] for name in figures} == {name: result[name] for name in figures}
    evaluated = [event for event in events if "eval_loss" in event]
    assert len(evaluated) == 2
    assert evaluated[-1]["eval_loss_span"] == pytest.approx(result["loss_span"], abs=1e-4)
    assert all(event["loss_match"] > 0 for event in events if "loss" in event)
    assert "accuracy_match" in amad.succeed("train", "recipe.yaml", "output=again")


def test_workers_and_an_interruption_change_nothing(amad, tree):
    tree["training"] |= {"max_steps": 10, "save_strategy": "steps", "save_steps": 4}
    # A rate that falls would fall faster where a run is to be shorter.
    tree["training"]["lr_scheduler_type"] = "constant"
    amad.document("train", amad.write(tree))
    amad.document("train", "recipe.yaml", "output=workers", "training.dataloader_num_workers=2")
    # 270 captions in batches of 36 are an epoch of 8 steps: it goes on in the middle of the first.
    amad.document("train", "recipe.yaml", "output=halves", "training.max_steps=4")
    tree["output"] = "halves"
    amad.document("train", amad.write(tree), "--resume")
    assert equal(weights("pretrained"), weights("workers"))
    assert equal(weights("pretrained"), weights("halves"))


def test_fine_tuning_starts_from_the_weights_and_words_that_pre_training_left(
    amad, tree, teacher_tree, scenes
):
    pretrained = amad.document("train", amad.write(tree))["model"]
    still = ("training.learning_rate=0", f"model={{path: {pretrained}}}")
    captions = teacher_tree | {"task": "captions", "data": {"root": str(scenes), **CAPTIONS}}
    amad.document("train", amad.write(teacher_tree), "output=vqa", *still)
    amad.document("train", amad.write(captions), "output=captions", *still)
    for name in ("vqa", "captions"):
        assert equal(weights(name), weights("pretrained"))
        words = [json.loads(Path(one, "model", "tokenizer.json").read_text()) for one in (name, "pretrained")]
        assert words[0]["model"] == words[1]["model"]


def test_a_pre_trained_student_is_distilled_further(amad, tree, teacher_tree):
    student = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 1}
    small = tree | {"model": {"config": tree["model"]["config"] | student}}
    pretrained = amad.document("train", amad.write(small))["model"]
    # The teacher takes its words from what was pre-trained, so that both have the same.
    given = f"model.tokenizer={pretrained}"
    teacher = amad.document("train", amad.write(teacher_tree), given, "output=taught")["model"]
    distilled = {key: value for key, value in teacher_tree.items() if key != "model"}
    distilled |= {"teacher": teacher, "student": {"path": pretrained}, "output": "student"}
    amad.document("distill", amad.write(distilled), "training.learning_rate=0")
    assert equal(weights("student"), weights("pretrained"))


def test_pre_training_is_distilled_like_any_task(amad, tree):
    teacher = amad.document("train", amad.write(tree))["model"]
    student = {key: value for key, value in tree.items() if key != "model"}
    student |= {"teacher": teacher, "student": {"heads": 2, "layers": 0.5, "width": 0.5}, "output": "student"}
    assert amad.document("distill", amad.write(student), "--dry-run")["pairs"]
    result = amad.document("distill", "recipe.yaml")
    assert {"accuracy_match", "loss_span"} <= result.keys()
    losses = [event for event in read_records("student/records.jsonl") if "loss" in event]
    assert all(event["loss_attention"] > 0 and event["loss_logits"] > 0 for event in losses)


def test_there_are_no_texts_to_score(amad, tree):
    amad.document("train", amad.write(tree))
    assert "scored while it trains" in amad.refuse("evaluate", "recipe.yaml")


def test_a_vocabulary_without_the_words_of_the_tasks_is_refused_before_training(amad, tree, taught):
    message = amad.refuse("train", amad.write(tree), f"model.tokenizer={taught.model}")
    assert "does not know what sets 'true' and 'false' apart" in message


COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "cyan": (0, 255, 255),
    "pink": (255, 0, 255),
}


@pytest.fixture
def walls(tmp_path):
    """Eight images of one colour each, which eight equal captions name."""
    folder = tmp_path / "walls"
    (folder / "images").mkdir(parents=True)
    images, captions = [], []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (8, 8), colour).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 8, "height": 8})
        captions += [
            {"id": 8 * number + i, "image_id": number, "caption": f"the wall is {name} today"}
            for i in range(8)
        ]
    (folder / "c.json").write_text(json.dumps({"images": images, "annotations": captions}))
    return folder


@pytest.mark.slow
def test_spans_and_matches_of_eight_images_are_learned_by_heart(amad, tree, walls):
    files = {"captions": {"captions": "c.json"}}
    tree["data"] = {"root": str(walls), "train": files, "validation": files}
    tree["model"]["config"] |= {"image_size": 8, "patch_size": 4, "d_model": 32, "d_kv": 8, "d_ff": 96}
    tree["model"]["config"]["dropout_rate"] = 0.0
    tree["training"] |= {
        "max_steps": 300,
        "per_device_train_batch_size": 64,
        "learning_rate": 6e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 20,
        "logging_steps": 100,
    }
    result = amad.document("train", amad.write(tree))
    # Which colour was left out, and whether it is the one that is said, only the image tells.
    assert result["accuracy_match"] > 90
    assert result["accuracy_span"] > 90
    assert result["loss_match"] < 0.1
    blind = yaml.safe_load(amad.write(tree).read_text())
    for number in range(8):
        Image.new("RGB", (8, 8)).save(walls / "images" / f"{number}.png")
    blind["training"]["max_steps"] = 100
    assert amad.document("train", amad.write(blind), "output=blind")["accuracy_match"] <= 75


def test_all_data_of_a_recipe_is_checked(amad, tree):
    path = amad.write(tree)
    told = amad.document("data", "check", path)
    assert {name: split["items"] for name, split in told["splits"].items()} == {
        "train": 54,
        "validation": 6,
        "train_questions": 216,
        "validation_questions": 24,
    }
    assert told["n_problems"] == 0
    assert "train_questions" in amad.succeed("data", "check", path, "--sheet", "sheet.html")
    assert Path("sheet.html").is_file()
    tree["data"]["train"]["questions"] = {"questions": "absent.json"}
    done = amad.call("data", "check", amad.write(tree), "--json")
    assert done.exit_code == 1
    assert "absent.json" in json.loads(done.stdout)["problems"][0]["message"]
