import json

import pytest

from amad.data.lxmert_files import read_lxmert_captions, read_lxmert_questions
from amad.data.problems import Problems
from amad.errors import DataError

ROWS = [
    {
        "img_id": "COCO_train2014_1",
        "sentf": {
            "mscoco": ["A bus. ", "Two."],
            "vg": ["red bus", "A bus."],
            "vqa": ["what is it?", "is it red?"],
        },
        "labelf": {"vqa": [{"bus": 1, "car": 0.3, "dog": 0}, {}]},
    },
    {
        "img_id": "7",
        "sentf": {"gqa": ["who is it?"], "visual7w": ["where?"]},
        "labelf": {"gqa": [{"a man": 1.0}], "visual7w": [{"here": 1}]},
    },
    {"img_id": "8", "sentf": {"vg": ["a tree", ""]}, "labelf": {}},
]


def file(tmp_path, rows=ROWS):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def test_texts_without_labels_are_captions(tmp_path):
    found = list(read_lxmert_captions(file(tmp_path)))
    assert [(one.image_id, one.captions, one.stem) for one in found] == [
        ("COCO_train2014_1", ("A bus.", "Two.", "red bus"), "COCO_train2014_1"),
        ("8", ("a tree",), "8"),
    ]
    assert all(one.image is None for one in found)


def test_texts_with_labels_are_questions_where_there_is_an_answer(tmp_path):
    found = list(read_lxmert_questions(file(tmp_path), weight=0.5))
    assert [(one.question_id, one.question, one.scores, one.stem) for one in found] == [
        ("COCO_train2014_1 vqa 0", "what is it?", {"bus": 1.0, "car": 0.3}, "COCO_train2014_1"),
        ("7 gqa 0", "who is it?", {"a man": 1.0}, "7"),
        ("7 visual7w 0", "where?", {"here": 1.0}, "7"),
    ]
    assert {one.weight for one in found} == {0.5}


def test_images_are_found_in_their_folders(tmp_path):
    for name in ("COCO_train2014_1.jpg", "7.jpg", "8.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert list(read_lxmert_captions(file(tmp_path), tmp_path))[1].image == tmp_path / "8.jpg"
    assert list(read_lxmert_questions(file(tmp_path), [tmp_path]))[1].image == tmp_path / "7.jpg"
    (tmp_path / "8.jpg").unlink()
    with pytest.raises(DataError, match=r"8\.jpg"):
        list(read_lxmert_captions(file(tmp_path), tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], ROWS[0]], "COCO_train2014_1 was listed before"),
        ([{"img_id": "1", "sentf": {"vqa": ["a?"]}, "labelf": {"vqa": []}}], "has 1 questions and 0 labels"),
        ([{"img_id": "1", "sentf": {"vqa": ["a?"]}, "labelf": {"vqa": [{"b": 2}]}}], "that of 'b' is 2"),
        ([{"img_id": "1", "sentf": {"vqa": ["a?"]}, "labelf": {"vqa": ["b"]}}], "must map answers to scores"),
        ([{"img_id": "1", "sentf": {"vqa": [3]}, "labelf": {"vqa": [{}]}}], "must be a list of strings"),
        ([{"img_id": "1", "sentf": {}, "labelf": {"vqa": [{}]}}], "sentf"),
        ([{"img_id": "1", "sentf": {"vg": ["a"]}}], "must have a question"),
        ([{"sentf": {}}], "img_id"),
    ],
)
def test_a_broken_row_is_refused_or_left_out(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        list(read_lxmert_questions(file(tmp_path, rows)))
    problems = Problems("skip")
    kept = list(read_lxmert_questions(file(tmp_path, [*rows, ROWS[1]]), problems=problems))
    assert [one.question_id for one in kept][-2:] == ["7 gqa 0", "7 visual7w 0"]
    assert problems.n_bad == ("must have a question" not in message)


def test_a_file_without_captions_is_refused(tmp_path):
    with pytest.raises(DataError, match="no image has a caption"):
        list(read_lxmert_captions(file(tmp_path, [ROWS[1]])))
