"""``amad data check``: everything is read, counted, listed and shown."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def path(amad, teacher_tree, own_scenes):
    """A recipe of questions on scenes that the test may break."""
    teacher_tree["data"]["root"] = str(own_scenes)
    return amad.write(teacher_tree)


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_good_data_is_counted_and_shown(amad, path, own_scenes):
    told = amad.document("data", "check", path, "--sheet", "deep/sheet.html")
    assert told == {
        "recipe": "recipe.yaml",
        "splits": {
            "train": {"items": 216, "images": 54, "fewest": 10, "most": 10, "unanswered": 0},
            "validation": {"items": 24, "images": 6, "fewest": 10, "most": 10, "unanswered": 0},
        },
        "n_problems": 0,
        "problems": [],
        "sheet": "deep/sheet.html",
    }
    page = Path("deep/sheet.html").read_text()
    first = json.loads((own_scenes / "questions_train.json").read_text())["questions"][0]["question"]
    assert first in page
    assert page.count("<article>") == page.count("<img") == 48
    assert "216" in amad.succeed("data", "check", path)
    assert not Path("teacher").exists()


def test_the_whole_validation_set_and_no_model_is_needed(amad, path):
    told = amad.document(
        "data", "check", path, "data.max_validation_questions=5", "model.config=null", "model.path=nowhere"
    )
    assert told["splits"]["validation"]["items"] == 24


def test_problems_of_all_splits_are_listed_and_shown(amad, path, own_scenes):
    edit(own_scenes / "annotations_train.json", lambda one: one["annotations"][2]["answers"].pop())
    edit(own_scenes / "questions_val.json", lambda one: one["questions"][1].update(question=None))
    broken = sorted((own_scenes / "images").glob("*val*"))[5]
    broken.unlink()
    broken.write_text("no image")
    done = amad.call("data", "check", path)
    assert done.exit_code == 1
    words = " ".join(done.stdout.split())
    assert "a question needs 10 answers but has 9" in words
    assert "'question' must be a string but is null" in words
    assert words.count("not a whole image") == 4
    assert "215" in words
    assert not Path("recipe-problems.jsonl").exists()


def test_a_long_list_is_written_to_a_file(amad, path, own_scenes):
    edit(
        own_scenes / "annotations_train.json",
        lambda one: [row["answers"].pop() for row in one["annotations"][:30]],
    )
    done = amad.call("data", "check", path)
    assert done.exit_code == 1
    assert "the first 20 of 30; all are in recipe-problems.jsonl" in done.stdout
    assert done.stdout.count("a question needs 10 answers") == 20
    rows = [json.loads(line) for line in Path("recipe-problems.jsonl").read_text().splitlines()]
    assert len(rows) == 30
    told = json.loads(amad.call("data", "check", path, "--json").stdout)
    assert told["problems"] == rows


def test_a_recipe_that_names_no_data_is_refused(amad, path):
    assert "data.root nowhere is no folder" in amad.refuse("data", "check", path, "data.root=nowhere")
    assert "absent.yaml: no such recipe" in amad.refuse("data", "check", "absent.yaml")
