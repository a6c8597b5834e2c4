import json
from pathlib import Path

from amad.metrics.documents import read_json


def test_equal_seeds_give_equal_files_and_another_seed_others(amad):
    told = amad.document("data", "shapes", "one", "--images", 20, "--seed", 5)
    amad.document("data", "shapes", "two", "--images", 20, "--seed", 5)
    amad.document("data", "shapes", "three", "--images", 20, "--seed", 6)
    one, two, three = (amad.snapshot(name) for name in ("one", "two", "three"))
    assert one == two
    assert one.keys() == three.keys()
    assert one["questions_train.json"] != three["questions_train.json"]
    assert told["images"] == {"train": 18, "val": 2}
    assert told["questions"]["val"] == len(read_json(Path("one/questions_val.json"))["questions"])
    stored = json.loads(Path("one/baselines.json").read_text())
    assert told["question_only_accuracy"] == stored["question_only"]


def test_the_table_tells_the_same(amad):
    shown = amad.succeed("data", "shapes", "one", "--images", 20)
    assert "18" in shown
    assert "without looking" in shown


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(amad):
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    assert "full: is there already and not empty" in amad.refuse("data", "shapes", "full", "--images", 20)
    assert amad.snapshot("full") == {"mine.txt": b"mine"}
    assert [path.name for path in Path().iterdir()] == ["full"]


def test_too_few_images_are_refused(amad):
    assert "at least 2 images" in amad.refuse("data", "shapes", "few", "--images", 1)
    assert not Path("few").exists()
