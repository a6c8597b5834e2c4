import json

import pytest
from PIL import Image
from story import write_run

from amad.errors import DataError
from amad.report.examples import EXAMPLES_FILE, EXAMPLES_FOLDER, MOST_LISTED, read_examples


def example(index, student, teacher, expected="red", **more):
    scores = {"student_score": float(student == expected), "teacher_score": float(teacher == expected)}
    row = {
        "index": index,
        "text": "what color?",
        "expected": expected,
        "student": student,
        "teacher": teacher,
    }
    return row | scores | {"image": None, "attention": None} | more


def write(run, rows):
    folder = run / EXAMPLES_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXAMPLES_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_without_examples_has_none(tmp_path):
    assert read_examples(write_run(tmp_path / "one"), {}) is None


def test_answers_are_sorted_by_who_is_right(tmp_path):
    rows = [example(0, "red", "red"), example(1, "blue", "red"), example(2, "red", "blue")]
    rows += [example(3, "blue", "green"), example(4, "blue", "blue")]
    write(tmp_path, rows)
    found = read_examples(tmp_path, {})
    assert (found["n"], found["same"], found["scored"]) == (5, 2, 5)
    assert found["table"] == {"both": 1, "teacher": 1, "student": 1, "neither": 2}
    assert {kind: part["n"] for kind, part in found["differ"].items()} == {
        "teacher": 1,
        "student": 1,
        "neither": 1,
    }
    assert found["differ"]["neither"]["rows"][0]["student"] == "blue"


def test_texts_without_scores_are_only_alike_or_different(tmp_path):
    rows = [
        {"text": "caption:", "expected": "a dog", "student": said, "teacher": "a dog"}
        for said in ("a dog", "a cat")
    ]
    write(tmp_path, rows)
    found = read_examples(tmp_path, {})
    assert (found["scored"], found["table"], found["same"]) == (0, None, 1)
    assert found["differ"]["neither"]["n"] == 1


def test_an_example_without_a_score_leaves_the_others_theirs(tmp_path):
    unscored = example(2, "blue", "red") | {"student_score": None, "teacher_score": None}
    write(tmp_path, [example(0, "red", "red"), example(1, "blue", "red"), unscored])
    found = read_examples(tmp_path, {})
    assert (found["n"], found["scored"]) == (3, 2)
    assert found["table"] == {"both": 1, "teacher": 1, "student": 0, "neither": 0}
    assert [found["differ"][kind]["n"] for kind in ("teacher", "student", "neither")] == [1, 0, 1]


def test_those_with_a_picture_come_first_and_no_more_than_are_shown(tmp_path):
    folder = write(
        tmp_path,
        [example(index, "blue", "red", image="7.jpg" if index == 30 else None) for index in range(40)],
    )
    Image.new("RGB", (2, 2)).save(folder / "7.jpg")
    images = {}
    listed = read_examples(tmp_path, images)["differ"]["teacher"]
    assert (listed["n"], len(listed["rows"])) == (40, MOST_LISTED)
    (digest,) = images
    assert listed["rows"][0]["image"] == digest
    assert images[digest].startswith("data:image/jpeg;base64,/9j/")


@pytest.mark.parametrize("name", ["missing.jpg", "../secret.jpg", "/etc/hostname", ".."])
def test_an_image_that_is_not_in_the_folder_is_refused(tmp_path, name):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    write(tmp_path, [example(0, "blue", "red", image=name)])
    with pytest.raises(DataError, match="no such image"):
        read_examples(tmp_path, {})


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', "\x00"])
def test_a_file_of_something_else_is_refused(tmp_path, line):
    folder = write(tmp_path, [])
    (folder / EXAMPLES_FILE).write_text(line + "\n")
    with pytest.raises(DataError, match="make it anew"):
        read_examples(tmp_path, {})


def test_a_character_at_which_python_breaks_lines_may_stand_in_a_text(tmp_path):
    rows = [example(i, "red", "blue", text=f"what\u2028is\u0085it {i}?") for i in range(2)]
    folder = write(tmp_path, [])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / EXAMPLES_FILE).write_text(lines, encoding="utf-8")
    assert sum(kind["n"] for kind in read_examples(tmp_path, {})["differ"].values()) == 2
