import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_the_result_file_is_official_and_scores_what_evaluate_says(amad, student_tree, scenes):
    # It learns the validation questions by heart, so that this compares more than zeros.
    student_tree["data"] |= {"train": student_tree["data"]["validation"], "max_validation_questions": 5}
    path = amad.write(student_tree)
    trained = amad.document(
        "train", path, "training.max_steps=80", "training.per_device_train_batch_size=24", "student.width=1.0"
    )
    told = amad.document("evaluate", path)
    assert told["questions"] == 24
    assert told["results"] == "student/results.json"
    scored = amad.document(
        "score",
        "vqa",
        "--questions",
        scenes / "questions_val.json",
        "--annotations",
        scenes / "annotations_val.json",
        "--results",
        told["results"],
    )
    assert scored["overall"] == pytest.approx(told["accuracy"], abs=0.005)
    assert told["accuracy"] > 10
    # While training, the first five questions were asked.
    rows = json.loads(Path(told["results"]).read_text())
    annotations = json.loads((scenes / "annotations_val.json").read_text())["annotations"]
    right = [
        row["answer"] == one["multiple_choice_answer"] for row, one in zip(rows, annotations, strict=True)
    ]
    assert trained["accuracy"] == pytest.approx(100 * sum(right[:5]) / 5)
    first = amad.document("evaluate", path, "--as-validated")
    assert (first["questions"], first["results"]) == (5, "student/results-validated.json")
    assert json.loads(Path(told["results"]).read_text()) == rows
    assert first["accuracy"] == pytest.approx(trained["accuracy"], abs=0.005)


def test_another_model_is_scored_without_touching_the_recipes_output(amad, student_tree, taught):
    path = amad.write(student_tree)
    told = amad.document("evaluate", path, "--model", taught.model)
    assert told["results"] is None
    assert told["accuracy"] == pytest.approx(taught.result["accuracy"], abs=0.005)
    assert not Path("student").exists()
    asked = amad.document("evaluate", path, "--model", taught.model, "--results", "deep/r.json")
    assert len(json.loads(Path("deep/r.json").read_text())) == asked["questions"]


def test_the_size_of_batches_changes_no_answer(amad, student_tree, taught):
    path = amad.write(student_tree)
    for size in (1, 24):
        amad.succeed(
            "evaluate", path, "--model", taught.model, "--results", f"{size}.json", "--batch-size", size
        )
    assert Path("1.json").read_bytes() == Path("24.json").read_bytes()


def test_a_run_that_was_not_made_yet_is_named_with_the_command_that_makes_it(amad, student_tree):
    message = amad.refuse("evaluate", amad.write(student_tree))
    assert "student/model is not there yet" in message
    assert "amad distill recipe.yaml" in message


def test_a_recipe_without_validation_has_nothing_to_score(amad, student_tree, taught):
    del student_tree["data"]["validation"]
    message = amad.refuse("evaluate", amad.write(student_tree), "--model", taught.model)
    assert "neither data.validation nor data.holdout" in message


def test_without_annotations_there_are_answers_and_no_score(amad, student_tree, taught):
    del student_tree["data"]["validation"]["annotations"]
    path = amad.write(student_tree)
    told = amad.document("evaluate", path, "--model", taught.model, "--results", "r.json")
    assert told["accuracy"] is None
    assert len(json.loads(Path("r.json").read_text())) == 24
    assert "no answers to score with" in amad.succeed("evaluate", path, "--model", taught.model)


def test_results_in_the_place_of_a_folder_are_refused(amad, student_tree, taught):
    Path("taken").mkdir()
    message = amad.refuse("evaluate", amad.write(student_tree), "--model", taught.model, "--results", "taken")
    assert "--results taken is a folder" in message


def test_blank_images_hide_the_image_alone_and_leave_the_other_result_file(amad, student_tree, scenes):
    # It learns the validation questions by heart; their answers need the image.
    student_tree["data"]["train"] = student_tree["data"]["validation"]
    path = amad.write(student_tree)
    amad.succeed(
        "train", path, "training.max_steps=80", "training.per_device_train_batch_size=24", "student.width=1.0"
    )
    shown = amad.document("evaluate", path)
    before = Path(shown["results"]).read_bytes()
    blank = amad.document("evaluate", path, "--blank-images")
    assert (shown["blank_images"], blank["blank_images"]) == (False, True)
    assert blank["results"] == "student/results-blank.json"
    assert Path(shown["results"]).read_bytes() == before != Path(blank["results"]).read_bytes()
    # One answer per question: nothing but its words is left to tell.
    asked = json.loads((scenes / "questions_val.json").read_text())["questions"]
    said = {}
    for question, row in zip(asked, json.loads(Path(blank["results"]).read_text()), strict=True):
        said.setdefault(question["question"], set()).add(row["answer"])
    assert all(len(answers) == 1 for answers in said.values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.generation_num_beams=0", "generation_num_beams must be at least 1"),
        ("training.generation_num_beams=many", "generation_num_beams = 'many'"),
        ("training.generation_max_length=1", "the start token counts"),
    ],
)
def test_decoding_that_cannot_be_is_refused_by_either_command(amad, teacher_tree, taught, override, message):
    path = amad.write(teacher_tree)
    assert message in amad.refuse("evaluate", path, override, "--model", taught.model)
    assert message in amad.refuse("train", path, override)


def test_what_was_measured_is_written_beside_the_results(amad, teacher_tree, taught):
    path = amad.write(teacher_tree)
    told = amad.document("evaluate", path, "--model", taught.model, "--results", "deep/r.json")
    assert json.loads(Path("deep/r.metrics.json").read_text()) == told
    assert sorted(path.name for path in Path("deep").iterdir()) == ["r.json", "r.metrics.json"]
    assert told["environment"]["torch"] == torch.__version__
    assert told["seconds"] > 0
    assert told["data"]["validation"]["questions"] == "questions_val.json"
    blank = amad.document("evaluate", path, "--model", taught.model, "--results", "b.json", "--blank-images")
    assert blank["digests"] == told["digests"]
    # Other questions have another digest, another model has another.
    teacher_tree["data"]["validation"] = teacher_tree["data"]["train"]
    weights = Path(shutil.copytree(taught.model, "other"), "model.safetensors")
    tensors = load_file(weights)
    tensors["shared.weight"][0, 0] += 1
    save_file(tensors, weights, {"format": "pt"})
    other = amad.document("evaluate", amad.write(teacher_tree), "--model", "other")
    assert all(other["digests"][name] != told["digests"][name] for name in ("model", "data"))


def test_the_training_set_is_not_read_unless_it_is_held_out_from(amad, teacher_tree, own_scenes, taught):
    teacher_tree["data"]["root"] = str(own_scenes)
    for path in own_scenes.glob("*_train.json"):
        path.unlink()
    arguments = "evaluate", amad.write(teacher_tree), "--model", taught.model
    assert amad.document(*arguments)["questions"] == 24
    held_out = "data.validation=null", "data.holdout={share: 0.5}"
    assert "questions_train.json: no such file" in amad.refuse(*arguments, *held_out)


def test_a_table_names_scale_and_direction(amad, teacher_tree, taught):
    shown = " ".join(amad.succeed("evaluate", amad.write(teacher_tree), "--model", taught.model).split())
    for told in (
        "VQA accuracy (0 to 100 %, higher is better)",
        "images shown │ the items' own",
        "not written",
    ):
        assert told in shown
