import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from transformers import AutoModelForSeq2SeqLM

from amad.cli import demo
from amad.recipe import load_recipe
from amad.records import read_records

TINY = ("--out", "demo", "--steps", 2, "--images", 100)


@pytest.fixture
def assets(tmp_path_factory, monkeypatch):
    """The recipe that ships, in a package of its own without the teacher that ships."""
    package = tmp_path_factory.mktemp("package")
    (package / "assets").mkdir()
    recipe = files("amad") / "assets" / "shapes-amad.yaml"
    (package / "assets" / "shapes-amad.yaml").write_bytes(recipe.read_bytes())
    monkeypatch.setattr(demo, "files", lambda name: package)
    return package / "assets"


def test_it_distils_twice_and_compares_three_models(amad, assets, taught):
    shutil.copytree(taught.model, assets / "shapes-teacher")
    told = amad.document("demo", *TINY, "--seed", 3)
    assert list(told["models"]) == ["teacher", "alone", "amad"]
    assert [row["heads"] for row in told["models"].values()] == [4, 2, 2]
    teacher, alone, distilled = told["models"].values()
    assert alone["parameters"] == distilled["parameters"] < teacher["parameters"]
    assert all(row["latency_seconds"] > 0 and 0 <= row["accuracy"] <= 100 for row in told["models"].values())
    for name in ("alone", "amad"):
        student = AutoModelForSeq2SeqLM.from_pretrained(f"demo/{name}/model")
        assert student.num_parameters() == alone["parameters"]
        assert load_recipe(f"demo/{name}/recipe.yaml").seed == 3
        assert load_recipe(f"demo/{name}/recipe.yaml").training["max_steps"] == 2
    baselines = json.loads(Path("demo/scenes/baselines.json").read_text())
    assert told["question_only_accuracy"] == baselines["question_only"]
    reported = {method["name"]: method["score"] for method in amad.document("report", "demo")["methods"]}
    # Each has the learning rate that is its better one, and the page says so.
    assert reported["AMAD kl, learning_rate 0.002"]["mean"] == pytest.approx(distilled["accuracy"])
    assert reported["ground truth alone, learning_rate 0.001"]["mean"] == pytest.approx(alone["accuracy"])
    (line,) = [
        event
        for event in read_records("demo/amad/records.jsonl")
        if event.get("who") == "teacher" and "score" in event
    ]
    assert line["score"] == pytest.approx(teacher["accuracy"])


def test_the_table_says_what_to_do_next(amad, assets, taught):
    shutil.copytree(taught.model, assets / "shapes-teacher")
    shown = amad.succeed("demo", *TINY)
    for words in (
        "What was kept",
        "student, AMAD",
        "student, ground truth only",
        "amad report demo",
        "amad inspect demo/amad/recipe.yaml",
    ):
        assert words in shown
    assert amad.document("inspect", "demo/amad/recipe.yaml")["pairs"]


def test_without_the_teacher_that_ships_it_ends_before_it_writes(amad, assets):
    message = amad.refuse("demo", *TINY)
    assert "shapes-teacher is not there" in message
    assert not Path("demo").exists()


def test_a_teacher_that_cannot_be_read_is_named_before_it_writes(amad, assets, taught):
    shutil.copytree(taught.model, assets / "shapes-teacher")
    (assets / "shapes-teacher" / "model.safetensors").unlink()
    assert "has no model.safetensors" in amad.refuse("demo", *TINY)
    assert not Path("demo").exists()


def test_a_folder_that_is_there_is_left_alone(amad, assets):
    Path("demo").mkdir()
    Path("demo/mine.txt").write_text("mine")
    assert "nothing is overwritten" in amad.refuse("demo", *TINY)
    assert amad.snapshot("demo") == {"mine.txt": b"mine"}


def test_examples_until_ninety_percent_are_those_of_the_first_evaluation_that_reached_it():
    curve = [(100, 10.0), (200, 72.0), (300, 71.0), (400, 80.0)]
    assert demo._examples_to({"curve": curve}, 80.0) == 200
    assert demo._examples_to({"curve": curve}, 90.0) is None
    assert demo._examples_to(None, 80.0) is None
