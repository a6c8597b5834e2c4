"""Examples that break a rule, through the commands: refused with file and entry, or left out, counted and listed."""

import gzip
import json
from pathlib import Path

import pytest

from amad.records import read_records

CAPTIONS = {
    "train": {"captions": "captions_train.json"},
    "validation": {"captions": "captions_val.json"},
    "max_input_tokens": 4,
    "max_target_tokens": 24,
}
DATA = {"captions": CAPTIONS, "translation": {"validation": "val"}}


@pytest.fixture
def tree(teacher_tree, own_scenes):
    """The recipe of a task in one step, on scenes that the test may break."""

    def of(task):
        own = teacher_tree["data"] if task == "vqa" else DATA[task]
        training = teacher_tree["training"] | {"max_steps": 1, "per_device_train_batch_size": 8}
        return teacher_tree | {
            "task": task,
            "data": {**own, "root": str(own_scenes)},
            "training": training,
        }

    return of


def edit(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def edit_lines(path, change):
    lines = path.read_bytes().split(b"\n")[:-1]
    change(lines)
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def nine_answers(folder):
    edit(folder / "annotations_train.json", lambda one: one["annotations"][2]["answers"].pop())
    return "annotations_train.json", "question ", "a question needs 10 answers but has 9"


def no_question(folder):
    edit(folder / "questions_val.json", lambda one: one["questions"][1].update(question=None))
    return "questions_val.json", "question ", "'question' must be a string but is null"


def listed_twice(folder):
    edit(folder / "captions_train.json", lambda one: one["images"].append(one["images"][0]))
    return "captions_train.json", "images item 54", "every image must be listed once but"


def caption_without_image(folder):
    edit(folder / "captions_val.json", lambda one: one["annotations"][3].update(image_id=-1))
    return "captions_val.json", "annotation ", "a caption needs an image, but image -1 is not listed"


def image_without_caption(folder):
    def change(one):
        image = one["images"][0]["id"]
        one["annotations"] = [row for row in one["annotations"] if row["image_id"] != image]

    edit(folder / "captions_train.json", change)
    return "captions_train.json", "image ", "an image needs a caption and has none"


def no_utf8(folder):
    edit_lines(folder / "train.de", lambda lines: lines.__setitem__(4, b"Stra\xdfe"))
    return "train.de", "line 5", "must be UTF-8 but byte 5 of the line, 0xdf, is not"


def empty_line(folder):
    edit_lines(folder / "train.en", lambda lines: lines.__setitem__(6, b" "))
    return "train.en", "line 7", "must have text but is empty"


def name_twice(folder):
    edit_lines(folder / "image_splits.train.txt", lambda lines: lines.__setitem__(3, lines[1]))
    return "image_splits.train.txt", "line 4", "every image must be listed once"


def missing_image(folder):
    name = (folder / "image_splits.train.txt").read_text().splitlines()[8]
    (folder / "images" / name).unlink()
    return "image_splits.train.txt", "line 9", f"{name}: no such image"


def truncated_image(folder):
    name = (folder / "image_splits.train.txt").read_text().splitlines()[8]
    whole = (folder / "images" / name).read_bytes()
    (folder / "images" / name).unlink()
    (folder / "images" / name).write_bytes(whole[: len(whole) // 2])
    return "image_splits.train.txt", "line 9", f"{name}: not a whole image"


BAD = [
    ("vqa", nine_answers),
    ("vqa", no_question),
    ("captions", listed_twice),
    ("captions", caption_without_image),
    ("captions", image_without_caption),
    ("translation", no_utf8),
    ("translation", empty_line),
    ("translation", name_twice),
    ("translation", missing_image),
    ("translation", truncated_image),
]


@pytest.mark.parametrize(("task", "spoil"), BAD)
def test_a_bad_example_is_refused_or_left_out_counted_and_listed(amad, tree, own_scenes, task, spoil):
    file, entry, message = spoil(own_scenes)
    path = amad.write(tree(task))
    if spoil is not truncated_image:
        refused = amad.refuse("train", path)
        assert file in refused
        assert entry in refused
        assert message in refused
        assert "data.on_bad_example=skip" in refused
        assert not Path("teacher").exists()

    checked = amad.call("data", "check", path, "--json")
    assert checked.exit_code == 1
    found = json.loads(checked.stdout)["problems"]

    done = amad.call("train", path, "data.on_bad_example=skip", "--json")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in Path("teacher/bad_examples.jsonl").read_text().splitlines()]
    (row,) = rows
    assert found == rows
    assert row["file"] == str(own_scenes / file)
    assert row["entry"].startswith(entry)
    assert message in row["message"]
    assert json.loads(done.stdout)["bad_examples"] == 1
    assert "bad examples left out: 1, listed in teacher/bad_examples.jsonl" in done.stderr
    (counts,) = [
        event["bad_examples"] for event in read_records("teacher/records.jsonl") if "bad_examples" in event
    ]
    assert counts == {str(own_scenes / file): 1}


def too_few_lines(folder):
    edit_lines(folder / "train.de", lambda lines: lines.pop(3))
    return r"train.de, line 54: is missing, while"


def truncated_gzip(folder):
    whole = gzip.compress((folder / "train.de").read_bytes())
    (folder / "train.de").unlink()
    (folder / "train.de.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "train.en.gz").write_bytes(gzip.compress((folder / "train.en").read_bytes()))
    return "train.de.gz: not a whole gzip file: it breaks off in line"


def no_lines(folder):
    for name in ("train.en", "train.de", "image_splits.train.txt"):
        (folder / name).write_text("")
    return "train.en: a split must have a sentence and has none"


def no_questions(folder):
    edit(folder / "questions_val.json", lambda one: one["questions"].clear())
    edit(folder / "annotations_val.json", lambda one: one["annotations"].clear())
    return "questions_val.json: must have a question and has none"


def no_images(folder):
    edit(folder / "captions_val.json", lambda one: one["images"].clear() or one["annotations"].clear())
    return "captions_val.json: the file must have an image with captions and has none"


def all_bad(folder):
    edit(folder / "annotations_val.json", lambda one: [row["answers"].pop() for row in one["annotations"]])
    return "questions_val.json: must have a question and has none (bad examples left out: 24)"


def truncated_json(folder):
    whole = (folder / "captions_train.json").read_text()
    (folder / "captions_train.json").write_text(whole[: len(whole) // 2])
    return "captions_train.json: not valid JSON"


@pytest.mark.parametrize(
    ("task", "spoil", "overrides"),
    [
        ("translation", too_few_lines, ()),
        ("translation", truncated_gzip, ("data.sentences='{split}.{language}.gz'",)),
        ("translation", no_lines, ()),
        ("vqa", no_questions, ()),
        ("vqa", all_bad, ("data.on_bad_example=skip",)),
        ("captions", no_images, ()),
        ("captions", truncated_json, ()),
    ],
)
def test_what_says_nothing_of_which_examples_are_good_is_always_refused(
    amad, tree, own_scenes, task, spoil, overrides
):
    if spoil is truncated_gzip:
        for language in ("de", "en"):
            edit_lines(own_scenes / f"val.{language}", lambda lines: None)
            (own_scenes / f"val.{language}.gz").write_bytes(
                gzip.compress((own_scenes / f"val.{language}").read_bytes())
            )
    message = spoil(own_scenes)
    path = amad.write(tree(task))
    for policy in ((), ("data.on_bad_example=skip",)):
        assert message in amad.refuse("train", path, *overrides, *policy)
    checked = amad.call("data", "check", path, *overrides, "--json")
    assert checked.exit_code == 1
    found = json.loads(checked.stdout)
    assert any(message in one["message"] for one in found["problems"])
    # The other split is read all the same.
    assert len(found["splits"]) == 1
    assert not Path("teacher").exists()


def test_nothing_left_out_is_said_too(amad, tree):
    told = amad.document("train", amad.write(tree("vqa")), "data.on_bad_example=skip")
    assert told["bad_examples"] == 0
    assert Path("teacher/bad_examples.jsonl").read_text() == ""
    assert "bad_examples" not in amad.document("train", amad.write(tree("vqa")), "output=other")
    assert not Path("other/bad_examples.jsonl").exists()


def test_what_will_be_left_out_is_in_the_plan(amad, tree, own_scenes):
    nine_answers(own_scenes)
    plan = amad.document("train", amad.write(tree("vqa")), "--dry-run", "data.on_bad_example=skip")
    assert plan["summary"]["bad examples left out"] == 1
    assert plan["summary"]["training questions"] == 215


def test_evaluation_lists_what_it_left_out_of_the_validation_set_alone(amad, tree, own_scenes, taught):
    nine_answers(own_scenes)
    no_question(own_scenes)
    path = amad.write(tree("vqa"))
    arguments = ("evaluate", path, "--model", taught.model, "--results", "r.json")
    assert "'question' must be a string" in amad.refuse(*arguments)
    told = amad.document(*arguments, "data.on_bad_example=skip")
    assert (told["questions"], told["bad_examples"]) == (23, 1)
    (row,) = [json.loads(line) for line in Path("r-bad_examples.jsonl").read_text().splitlines()]
    assert row["file"] == str(own_scenes / "questions_val.json")


def test_evaluation_reads_no_training_file(amad, tree, own_scenes, taught):
    for name in ("questions_train.json", "annotations_train.json"):
        (own_scenes / name).unlink()
    told = amad.document("evaluate", amad.write(tree("vqa")), "--model", taught.model)
    assert told["questions"] == 24
