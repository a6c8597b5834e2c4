"""What a user gets wrong, through the command line: status 2, one error with its remedy, and nothing lost."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from amad.data.tokens import train_tokenizer
from amad.models.load import load_model, load_tokenizer, save_checkpoint
from amad.models.vlt5 import VLT5ForConditionalGeneration
from amad.recipe import load_recipe
from amad.records import read_records


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def own_tree(student_tree, own_scenes):
    student_tree["data"]["root"] = str(own_scenes)
    return student_tree


def refused_before_anything_was_written(amad, command, path, *overrides):
    message = amad.refuse(command, path, *overrides)
    assert not Path("student").exists()
    return message


def test_a_missing_image(amad, own_tree, own_scenes):
    gone = sorted((own_scenes / "images").glob("shapes_train_*"))[7]
    gone.unlink()
    message = refused_before_anything_was_written(amad, "distill", amad.write(own_tree))
    assert f"{gone}: no such image" in message
    assert "Check the image folder" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_found_truncated_while_training_and_mended(
    amad, teacher_tree, own_scenes, scenes, workers
):
    broken = sorted((own_scenes / "images").glob("shapes_train_*"))[40]
    whole = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(whole[: len(whole) // 2])
    teacher_tree["data"]["root"] = str(own_scenes)
    teacher_tree["training"] |= {
        "per_device_train_batch_size": 4,
        "max_steps": 54,
        "save_strategy": "steps",
        "save_steps": 5,
        "save_total_limit": 1,
        "dataloader_num_workers": workers,
    }
    path = amad.write(teacher_tree)
    message = amad.refuse("train", path)
    assert f"error: {broken}: not a whole image" in message
    assert "Fetch the file again" in message

    # What was there before the error is whole, and no model is there that looks finished.
    assert load_recipe("teacher/recipe.yaml").task == "vqa"
    losses = [event for event in read_records("teacher/records.jsonl") if "loss" in event]
    assert len(losses) >= 5
    assert not Path("teacher/model").exists()
    (checkpoint,) = Path("teacher/checkpoints").iterdir()
    AutoModelForSeq2SeqLM.from_pretrained(checkpoint)

    # Begun anew it would overwrite; mended and resumed it ends.
    assert "not empty" in amad.refuse("train", path)
    broken.write_bytes(whole)
    if workers == 0:
        assert amad.document("train", path, "--resume")["examples_seen"] == 216


def test_a_question_with_no_annotation(amad, own_tree, own_scenes):
    edit(own_scenes / "annotations_train.json", lambda document: document["annotations"].pop(3))
    message = refused_before_anything_was_written(amad, "distill", amad.write(own_tree))
    assert "annotations_train.json: has no annotation of question" in message


def test_an_annotation_with_no_question(amad, own_tree, own_scenes):
    edit(own_scenes / "questions_train.json", lambda document: document["questions"].pop(3))
    message = refused_before_anything_was_written(amad, "distill", amad.write(own_tree))
    assert "annotations_train.json: annotation" in message
    assert "has no question" in message


def test_training_questions_without_any_answer(amad, own_tree):
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(own_tree), "data.train.annotations=null"
    )
    assert "none of the 216 questions has an answer" in message


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("objectiv", "objective"),
        ("data.train.imagez", "images"),
        ("student.headz", "heads"),
        ("objective.attention.temprature", "temperature"),
        ("training.learning_rat", "learning_rate"),
        ("student.config.dropout_rat", "dropout_rate"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(amad, student_tree, key, nearest):
    message = refused_before_anything_was_written(amad, "distill", amad.write(student_tree), f"{key}=1")
    assert key.rpartition(".")[2] in message
    assert f"id you mean '{nearest}'?" in message


def test_an_unknown_key_of_a_new_model(amad, teacher_tree):
    message = amad.refuse("train", amad.write(teacher_tree), "model.config.num_head=2")
    assert "unknown key 'model.config.num_head': did you mean 'num_heads'?" in message
    assert not Path("teacher").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.config.model_type=vlt4", "did you mean 'vlt5'?"),
        ("model.config.model_type=null", "Name one, such as vlt5"),
        ("model.config.d_model=wide", "model.config makes no model"),
        ("model.config.patch_size=7", "36 is no multiple of patch_size 7"),
        ("model.config.image_size=null", "model.config.image_size is None"),
        ("model.config.model_type=vit", "'vit' is no encoder-decoder"),
    ],
)
def test_a_model_that_cannot_be_built(amad, teacher_tree, override, words):
    assert words in amad.refuse("train", amad.write(teacher_tree), override)
    assert not Path("teacher").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.max_steps=many", "training.max_steps = 'many'"),
        ("training.learning_rate=fast", "training.learning_rate = 'fast'"),
        ("training.per_device_train_batch_size=0", "must be at least 1"),
        ("training.eval_strategy=sometimes", "sometimes"),
        ("training.seed=3", "decided by 'seed'"),
        ("student.config.heads=3", "student.config.heads is decided by student.heads"),
        ("student.heads=3", "8 is no multiple of 3"),
        ("objective.attention.variant=cosine", "'cosine'"),
        ("pairing=middle", "pairing"),
        ("pairing.encoder.self=1", "pairing"),
        ("seed=-1", "seed = -1"),
    ],
)
def test_a_value_that_breaks_a_rule(amad, student_tree, override, words):
    assert words in refused_before_anything_was_written(amad, "distill", amad.write(student_tree), override)


def test_evaluating_on_nothing(amad, student_tree):
    del student_tree["data"]["validation"]
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(student_tree), "training.eval_strategy=epoch"
    )
    assert "Give data.validation or data.holdout" in message


def test_a_student_with_a_smaller_vocabulary(amad, student_tree, taught):
    teacher = load_model(taught.model)
    teacher.resize_token_embeddings(len(load_tokenizer(taught.model)) + 8)
    save_checkpoint(teacher, None, None, "other")
    path = amad.write(student_tree | {"student": {"path": "other"}})
    for command in ("distill", "train"):
        message = refused_before_anything_was_written(amad, command, path)
        sizes = teacher.config.vocab_size, load_model(taught.model).config.vocab_size
        assert f"{sizes[0]} != {sizes[1]}" in message
        assert "shares the teacher's tokenizer" in message


def test_a_student_with_as_many_words_but_other_ones(amad, student_tree, taught):
    words = load_tokenizer(taught.model)
    plain = [word for word in words.get_vocab() if "<" not in word]
    other = train_tokenizer([" ".join(f"{word}x" if word.isalpha() else word for word in plain)])
    assert len(other) == len(words)
    save_checkpoint(load_model(taught.model), other, None, "other")
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(student_tree | {"student": {"path": "other"}})
    )
    assert "different vocabularies" in message


def test_a_student_of_its_own_with_the_teachers_words_is_taken(amad, student_tree, taught):
    path = amad.write(student_tree | {"student": {"path": str(taught.model)}})
    assert len(amad.document("distill", path, "--dry-run")["pairs"]) == 6


@pytest.mark.parametrize("stacks", ["{vision.self: 1}", "{encoder.self: 1, text.cross: 1}"])
def test_a_stack_that_the_models_lack(amad, student_tree, stacks):
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(student_tree), f"objective.attention.stacks={stacks}"
    )
    assert "is not in the student, which has encoder.self, decoder.self, decoder.cross" in message
    assert "objective.attention.stacks" in message


def test_a_checkpoint_that_is_a_pickle(amad, student_tree, taught):
    folder = Path("pickled")
    load_tokenizer(taught.model).save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((taught.model / name).read_bytes())
    weights = VLT5ForConditionalGeneration.from_pretrained(taught.model).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    path = amad.write(student_tree | {"teacher": str(folder)})
    message = refused_before_anything_was_written(amad, "distill", path)
    assert "pickled/pytorch_model.bin is a pickle" in message
    assert "save_pretrained" in message


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_a_pickle_is_never_opened(amad, student_tree, taught):
    folder = Path("pickled")
    load_tokenizer(taught.model).save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((taught.model / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    amad.refuse("distill", amad.write(student_tree | {"teacher": str(folder)}))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.train.image_name=../{image_id}.png", "leaves the data folder"),
        ("data.train.image_name=/etc/{image_id}.png", "leaves the data folder"),
        ('data.train.image_name="{image_id.__class__}.png"', "may only use"),
        ("data.train.image_name={image_id}.png", "Put text with braces"),
        ("data.train.questions=../q.json", "data.train.questions: the file name '../q.json' leaves"),
        (
            "data.validation.annotations=/a.json",
            "data.validation.annotations: the file name '/a.json' leaves",
        ),
        ("data.train.images=..", "data.train.images: the file name '..' leaves"),
    ],
)
def test_a_path_that_leaves_the_data_folder(amad, student_tree, override, words):
    assert words in refused_before_anything_was_written(amad, "distill", amad.write(student_tree), override)


def test_an_image_of_blips_form_that_leaves_the_data_folder(amad, own_tree, own_scenes):
    row = {"image": "../../secret.png", "question": "what?", "question_id": 1, "answer": ["red"] * 10}
    (own_scenes / "blip.json").write_text(json.dumps([row]))
    own_tree["data"] |= {"train": {"format": "blip", "questions": "blip.json"}}
    message = refused_before_anything_was_written(amad, "distill", amad.write(own_tree))
    assert "'../../secret.png' leaves the data folder" in message


def test_keys_that_a_format_does_not_have(amad, student_tree):
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(student_tree), "data.train.format=blip"
    )
    assert "format blip has no annotations" in message


def test_an_output_folder_that_is_not_empty(amad, student_tree):
    Path("student").mkdir()
    Path("student/mine.txt").write_text("mine")
    message = amad.refuse("distill", amad.write(student_tree))
    assert "output folder student is not empty" in message
    assert amad.snapshot("student") == {"mine.txt": b"mine"}


def test_an_output_that_is_a_file(amad, student_tree):
    Path("student").write_text("mine")
    assert "student is a file" in amad.refuse("distill", amad.write(student_tree))
    assert Path("student").read_text() == "mine"


@pytest.mark.parametrize("command", ["train", "distill", "evaluate", "inspect"])
def test_a_missing_recipe(amad, command):
    message = amad.refuse(command, "absent.yaml")
    assert "absent.yaml: no such recipe" in message
    assert "recipes/" in message


@pytest.mark.parametrize("override", ["seed", "=3", "task.deeper=1", "seed=[1"])
def test_a_malformed_override(amad, student_tree, override):
    message = refused_before_anything_was_written(amad, "distill", amad.write(student_tree), override)
    assert repr(override) in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("root"), "key 'data.root' is missing"),
        (lambda data: data.update(root="nowhere"), "data.root nowhere is no folder"),
    ],
)
def test_a_missing_data_folder(amad, student_tree, change, words):
    change(student_tree["data"])
    assert words in refused_before_anything_was_written(amad, "distill", amad.write(student_tree))


def test_a_missing_teacher(amad, student_tree):
    message = refused_before_anything_was_written(
        amad, "distill", amad.write(student_tree | {"teacher": "./gone/model"})
    )
    assert "There is no folder ./gone/model" in message


def test_distilling_a_recipe_that_has_no_teacher(amad, teacher_tree):
    message = amad.refuse("distill", amad.write(teacher_tree))
    assert "amad distill needs 'teacher'" in message


def test_resuming_what_was_never_begun(amad, student_tree):
    message = refused_before_anything_was_written(amad, "distill", amad.write(student_tree), "--resume")
    assert "student holds no run to resume. Start it without --resume" in message


def test_resuming_with_a_teacher_that_changed_changes_nothing(amad, student_tree, taught, tmp_path):
    teacher = tmp_path / "teacher-copy"
    shutil.copytree(taught.model, teacher)
    student_tree["teacher"] = str(teacher)
    student_tree["training"] |= {"save_strategy": "steps", "save_steps": 2}
    path = amad.write(student_tree)
    amad.document("distill", path)
    before = amad.snapshot("student")
    model = load_model(teacher)
    with torch.no_grad():
        model.shared.weight[3] += 1
    model.save_pretrained(teacher)
    message = amad.refuse("distill", path, "--resume")
    assert "began with a teacher whose weights have the digest" in message
    assert amad.snapshot("student") == before


def test_resuming_another_run_changes_nothing(amad, student_tree):
    student_tree["training"] |= {"save_strategy": "steps", "save_steps": 2}
    path = amad.write(student_tree)
    amad.document("distill", path)
    before = amad.snapshot("student")
    message = amad.refuse("distill", path, "--resume", "seed=4")
    assert "seed = 0, and the recipe to resume with has 4" in message
    assert "a run of amad distill, not of amad train" in amad.refuse("train", path, "--resume")
    assert amad.snapshot("student") == before


def test_a_place_that_may_not_be_written(amad, student_tree, monkeypatch):
    make = Path.mkdir

    def refuse(self, *args, **kwargs):
        if "student" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    message = amad.refuse("distill", amad.write(student_tree))
    assert "Permission denied" in message
    assert "Choose a place that you may write to" in message
