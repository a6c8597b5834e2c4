import json

import pytest
from PIL import Image

from amad.data.problems import Problems
from amad.data.vqa_lists import read_blip, read_vlt5
from amad.errors import DataError

TEN = ["red"] * 4 + ["a blue"] * 3 + ["2", "two"] + ["green"]

VLT5 = {
    "answer_type": "other",
    "img_id": "COCO_train2014_000000458752",
    "label": {"net": 1, "a goal": 0.3},
    "question_id": 458752000,
    "question_type": "what is this",
    "sent": "What is this photo taken looking through?",
}


def pictures(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("read", "good", "bad"),
    [
        (
            read_vlt5,
            {"img_id": "1", "sent": "what?", "label": {"red": 1}},
            {"img_id": "1", "sent": "what?", "label": {"red": 2}},
        ),
        (
            read_blip,
            {"image": "1.jpg", "question": "what?", "answer": TEN},
            {"image": "1.jpg", "question": "what?", "answer": TEN[:9]},
        ),
    ],
)
def test_rows_of_the_one_file_forms_are_left_out_too(tmp_path, read, good, bad):
    rows = [bad | {"question_id": 1}, good | {"question_id": 2}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    problems = Problems("skip")
    assert [one.question_id for one in read(tmp_path / "a.json", problems=problems)] == [2]
    assert [bad.entry for bad in problems] == ["question 1"]


def test_vl_t5_rows_keep_their_soft_scores(tmp_path):
    path = tmp_path / "karpathy_train.json"
    unlabelled = {key: value for key, value in VLT5.items() if key != "label"} | {"question_id": 1}
    raw = VLT5 | {"question_id": 2, "answers": [{"answer": "net"}] * 10, "label": {}}
    path.write_text(json.dumps([VLT5, unlabelled, raw]))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / f"{VLT5['img_id']}.jpg")
    first, second, third = list(read_vlt5(path, tmp_path / "images"))
    assert (first.scores, first.answers, first.best_answer) == (
        {"net": 1.0, "a goal": 0.3},
        None,
        ("net", 1.0),
    )
    assert (first.question, first.image_id) == (VLT5["sent"], VLT5["img_id"])
    assert first.image == tmp_path / "images" / "COCO_train2014_000000458752.jpg"
    assert first.accuracy("Net") == 1.0
    # As the file writes it, which is not the normal form.
    assert first.accuracy("a goal") == 0.3
    assert (second.scores, second.best_answer) == ({}, ("", 0.0))
    assert third.answers == ("net",) * 10


def test_vl_t5_rows_of_visual_genome_may_name_their_text_question(tmp_path):
    row = {"question" if key == "sent" else key: value for key, value in VLT5.items()}
    (tmp_path / "vg_qa_full.json").write_text(json.dumps([row | {"img_id": "2341"}]))
    (only,) = list(read_vlt5(tmp_path / "vg_qa_full.json"))
    assert (only.question, only.image_id) == (VLT5["sent"], "2341")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": {"net": 2}}, "a soft score must be from 0 to 1 but that of 'net' is 2"),
        ({"label": {"net": "1"}}, "'net' must be"),
        ({"label": ["net"]}, "'label' must be an object"),
        ({"answers": ["net"]}, "needs 10 answers but has 1"),
        ({"sent": 1}, "'sent' must be a string"),
        ({"img_id": "../a"}, "leaves the data folder"),
    ],
)
def test_malformed_vl_t5_rows_are_refused(tmp_path, change, message):
    (tmp_path / "a.json").write_text(json.dumps([VLT5 | change]))
    with pytest.raises(DataError, match=message):
        list(read_vlt5(tmp_path / "a.json", tmp_path))


def test_vlt5s_questions_take_the_ten_answers_of_the_official_file(tmp_path):
    rows = [
        {"img_id": "COCO_val2014_000000000001", "question_id": i, "sent": "what?", "label": {"red": 1}}
        for i in (1, 2)
    ]
    (tmp_path / "karpathy_val.json").write_text(json.dumps(rows))
    ten = ["blue"] * 2 + ["red"] * 8
    official = [
        {"question_id": i, "image_id": 1, "answers": [{"answer": one} for one in ten]} for i in (1, 2, 3)
    ]
    (tmp_path / "official.json").write_text(json.dumps({"annotations": official}))
    first, second = list(read_vlt5(tmp_path / "karpathy_val.json", annotations=tmp_path / "official.json"))
    assert first.answers == second.answers == tuple(ten)
    assert first.scores == {"red": 1.0}
    # 2 of 10 gave it: the official accuracy, where the file's own score is 0.
    assert first.accuracy("blue") == pytest.approx(0.6)

    official[0]["answers"].pop()
    (tmp_path / "official.json").write_text(json.dumps({"annotations": official}))
    with pytest.raises(DataError, match=r"official\.json, question 1: a question needs 10 answers but has 9"):
        list(read_vlt5(tmp_path / "karpathy_val.json", annotations=tmp_path / "official.json"))
    (tmp_path / "official.json").write_text(json.dumps({"annotations": official[2:]}))
    # Whatever follows what is asked for: the file must be whole.
    (tmp_path / "one.json").write_text(json.dumps(rows[:1]))
    whole = json.dumps({"annotations": [official[1] | {"question_id": 1}, official[2]]})
    (tmp_path / "cut.json").write_text(whole[:-2])
    with pytest.raises(DataError, match=r"cut\.json: not valid JSON"):
        list(read_vlt5(tmp_path / "one.json", annotations=tmp_path / "cut.json"))
    with pytest.raises(
        DataError, match=r"official\.json: has no annotation of question 1 in .*karpathy_val.*2 such"
    ):
        list(read_vlt5(tmp_path / "karpathy_val.json", annotations=tmp_path / "official.json"))


def test_blip_rows_of_both_sets_are_read(tmp_path):
    rows = [
        {"dataset": "vqa", "image": "train2014/a.jpg", "question": "what?", "question_id": 1, "answer": TEN},
        {"dataset": "vg", "image": "vg/1.jpg", "question": "Who?", "question_id": 1, "answer": "A man."},
        {"dataset": "vg", "image": "vg/1.jpg", "question": "Why?", "answer": "no reason"},
        {"image": "vg/1.jpg", "question": "where?", "question_id": 9},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    images = pictures(tmp_path / "images", "train2014/a.jpg", "vg/1.jpg")
    vqa, vg, without_id, test = list(read_blip(tmp_path / "a.json", images))
    assert vqa.scores == {"red": 1.0, "blue": 0.9, "2": 0.6, "green": 0.3}
    assert vqa.image == images / "train2014" / "a.jpg"
    assert (vg.scores, vg.accuracy("man")) == ({"man": 1.0}, 1.0)
    assert (vqa.weight, vg.weight) == (1.0, 0.2)
    assert {one.weight for one in list(read_blip(tmp_path / "a.json", images, weight=0.5))} == {0.5}
    assert without_id.question_id == "row 2"
    assert vg.image_id == test.image_id
    assert (test.answers, test.scores) == (None, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../../secret.jpg"}, "leaves the data folder"),
        ({"image": "/etc/passwd"}, "leaves the data folder"),
        ({"image": "none.jpg"}, r"none\.jpg: no such image"),
        ({"answer": TEN[:3]}, "needs 10 answers but has 3"),
        ({"answer": "red"}, "must be a list of strings"),
        ({"answer": [1] * 10}, "must be a list of strings"),
    ],
)
def test_malformed_blip_rows_are_refused(tmp_path, change, message):
    row = {"dataset": "vqa", "image": "a.jpg", "question": "what?", "question_id": 1, "answer": TEN}
    (tmp_path / "a.json").write_text(json.dumps([row | change]))
    images = pictures(tmp_path / "images", "a.jpg")
    with pytest.raises(DataError, match=message):
        list(read_blip(tmp_path / "a.json", images))
    (tmp_path / "a.json").write_text(json.dumps([row, row]))
    with pytest.raises(DataError, match="question_id must be unique"):
        list(read_blip(tmp_path / "a.json", images))


def test_no_answers_at_all_are_not_ten(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([VLT5 | {"answers": []}]))
    with pytest.raises(DataError, match="a question needs 10 answers but has 0"):
        list(read_vlt5(tmp_path / "a.json"))
