import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amad.data.problems import Problems
from amad.data.vqa_files import Annotations, read_vqa_v2
from amad.data.vqa_lists import read_blip, read_vlt5
from amad.errors import DataError

TEN = ["red"] * 4 + ["a blue"] * 3 + ["2", "two"] + ["green"]


def question(question_id=1000, image_id=1, text="what?"):
    return {"question_id": question_id, "image_id": image_id, "question": text}


def annotation(question_id=1000, image_id=1, answers=TEN):
    return {
        "question_id": question_id,
        "image_id": image_id,
        "question_type": "what",
        "answer_type": "other",
        "multiple_choice_answer": answers[0] if answers else "",
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": i}
            for i, answer in enumerate(answers, 1)
        ],
    }


def write(folder, questions, annotations, images=(), zipped=False, subtype="val2014"):
    """Two official files and some images; gives their paths as read_vqa_v2 takes them."""
    paths = []
    for key, rows in (("questions", questions), ("annotations", annotations)):
        raw = json.dumps({key: rows, "data_subtype": subtype}).encode()
        paths.append(folder / f"{key}.json{'.gz' if zipped else ''}")
        paths[-1].write_bytes(gzip.compress(raw) if zipped else raw)
    (folder / "images").mkdir(exist_ok=True)
    for name in images:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return [*paths, folder / "images"]


@pytest.mark.parametrize("zipped", [False, True])
def test_official_files_are_read_with_their_official_image_names(tmp_path, zipped):
    paths = write(
        tmp_path,
        [question(1000, 1, "what?"), question(2000, 2, "is it?")],
        [annotation(2000, 2, ["yes"] * 10), annotation(1000, 1)],
        ["COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg"],
        zipped,
    )
    first, second = list(read_vqa_v2(*paths))
    assert (first.question_id, first.image_id, first.question) == (1000, 1, "what?")
    assert first.answers == tuple(TEN)
    assert first.scores == {"red": 1.0, "blue": 0.9, "2": 0.6, "green": 0.3}
    assert first.best_answer == ("red", 1.0)
    assert first.image == tmp_path / "images" / "COCO_val2014_000000000001.jpg"
    assert (first.question_type, first.answer_type) == ("what", "other")
    assert (second.question_id, second.scores) == (2000, {"yes": 1.0})


def test_accuracy_is_official_with_ten_answers(tmp_path):
    (example,) = list(read_vqa_v2(*write(tmp_path, [question()], [annotation(answers=["Yes"] * 10)])[:2]))
    assert example.accuracy("Yes") == 1
    assert example.accuracy("yes") == 0
    (example,) = list(read_vqa_v2(*write(tmp_path, [question()], [annotation()])[:2]))
    assert example.accuracy("Blue!") == pytest.approx(0.9)


def test_a_test_split_without_annotations_has_no_answers(tmp_path):
    questions, _, _ = write(tmp_path, [question()], [])
    (example,) = list(read_vqa_v2(questions))
    assert (example.answers, example.scores, example.best_answer, example.image) == (
        None,
        {},
        ("", 0.0),
        None,
    )


def test_images_by_id_and_by_split(tmp_path):
    paths = write(tmp_path, [question()], [annotation()], ["1.png", "train_1.png"])
    assert next(read_vqa_v2(*paths, "{image_id}.png")).image.name == "1.png"
    assert next(read_vqa_v2(*paths, "{split}_{image_id}.png", split="train")).image.name == "train_1.png"


def test_an_empty_file_is_no_matter_of_the_template(tmp_path):
    paths = write(tmp_path, [question()], [annotation()], ["1.png"])
    paths[0].write_text("")
    with pytest.raises(DataError, match=r"questions\.json.*not (valid )?JSON|questions\.json.*empty"):
        list(read_vqa_v2(*paths, "{split}_{image_id}.png"))


def test_a_split_that_cannot_be_read_off_is_asked_for(tmp_path):
    paths = write(tmp_path, [question()], [annotation()], ["1.png"], subtype="test2015")
    with pytest.raises(DataError, match="data_subtype is 'test2015', which is neither"):
        list(read_vqa_v2(*paths))


@pytest.mark.parametrize(
    ("questions", "annotations", "message"),
    [
        (
            [question(1), question(2)],
            [annotation(1)],
            r"annotations\.json: has no annotation of question 2 in",
        ),
        (
            [question(1)],
            [annotation(1), annotation(2)],
            r"annotations\.json: annotation 2 has no question in",
        ),
        (
            [question(1), question(1)],
            [annotation(1)],
            r"questions\.json: every question_id must be unique but 1",
        ),
        (
            [question(1)],
            [annotation(1), annotation(1)],
            r"annotations\.json: every question_id must be unique",
        ),
        ([question(1, 1)], [annotation(1, 2)], "question 1: belongs to image 2 here and to image 1"),
        (
            [question(1)],
            [annotation(1, answers=TEN[:9])],
            "question 1: a question needs 10 answers but has 9",
        ),
        ([question(1)], [annotation(1, answers=[*TEN, "x"])], "needs 10 answers but has 11"),
        ([question(1)], [annotation(1) | {"answers": "red"}], "'answers' must be a list"),
        (
            [question(1)],
            [annotation(1) | {"answers": [{"a": "red"}] * 10}],
            "an object with a string 'answer'",
        ),
        (
            [question(1, 5)],
            [annotation(1, 7, answers=TEN[:9])],
            "question 1: belongs to image 7 here and to image 5",
        ),
        ([question(1, 5)], [annotation(1, None)], "question 1: belongs to image None here and to image 5"),
        (
            [question(1)],
            [annotation(1) | {"question_type": 5}],
            "'question_type' must be a string but is a whole",
        ),
        (
            [question(1)],
            [annotation(1) | {"answer_type": ["a"]}],
            "'answer_type' must be a string but is a list",
        ),
        ([question(1, text=None)], [annotation(1)], "question 1: 'question' must be a string but is null"),
        ([{"question_id": 1, "question": "?"}], [annotation(1, None)], "question 1: has no 'image_id'"),
        ([{"image_id": 1, "question": "?"}], [], "item 0: has no 'question_id'"),
    ],
)
def test_files_that_contradict_each_other_are_refused(tmp_path, questions, annotations, message):
    paths = write(tmp_path, questions, annotations)
    with pytest.raises(DataError, match=message):
        list(read_vqa_v2(*paths[:2]))


def test_questions_that_break_a_rule_are_left_out_and_listed(tmp_path):
    paths = write(
        tmp_path,
        [question(1, 1), question(2, 1), question(3, 1, text=None), question(4, 4), question(5, 1)],
        [annotation(1), annotation(2, answers=TEN[:9]), annotation(3), annotation(4, 4), annotation(5)],
        ["1.png"],
    )
    problems = Problems("skip")
    examples = list(read_vqa_v2(*paths, "{image_id}.png", problems=problems))
    assert [one.question_id for one in examples] == [1, 5]
    assert [(bad.file, bad.entry) for bad in problems] == [
        (str(paths[1]), "question 2"),
        (str(paths[0]), "question 3"),
        (str(paths[0]), "question 4"),
    ]
    assert "needs 10 answers but has 9" in next(iter(problems)).message


def test_questions_and_annotations_exchanged_are_refused(tmp_path):
    questions, annotations, _ = write(tmp_path, [question()], [annotation()])
    with pytest.raises(DataError, match="questions, annotations and results are not exchanged"):
        list(read_vqa_v2(annotations, questions))


def test_a_missing_image_is_found_when_the_set_is_opened(tmp_path):
    paths = write(tmp_path, [question(1, 1), question(2, 2)], [annotation(1, 1), annotation(2, 2)], ["1.png"])
    with pytest.raises(DataError, match=r"2\.png: no such image, needed by .*question 2 \(1 missing"):
        list(read_vqa_v2(*paths, "{image_id}.png"))


@pytest.mark.parametrize("image_id", ["../../secret", "/etc/passwd", "a/../../b"])
def test_an_image_id_that_leaves_the_folder_is_refused(tmp_path, image_id):
    paths = write(tmp_path, [question(1, image_id)], [annotation(1, image_id)])
    with pytest.raises(DataError, match=r"question 1: the file name .* leaves the data folder"):
        list(read_vqa_v2(*paths, "{image_id}"))


def test_a_template_that_leaves_the_folder_is_refused(tmp_path):
    paths = write(tmp_path, [question()], [annotation()])
    with pytest.raises(DataError, match="leaves the data folder"):
        list(read_vqa_v2(*paths, "../{image_id}.png"))


ROWS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["yes", "1", "../a"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["question_id", "image_id", "question", "answers", "answer", "sent", "img_id", "image"]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(questions=ROWS, annotations=ROWS)
def test_arbitrary_documents_are_read_or_refused_by_file_name(tmp_path_factory, questions, annotations):
    folder = tmp_path_factory.mktemp("rows")
    paths = write(folder, questions, annotations)
    (folder / "list.json").write_text(json.dumps(questions))
    for read in (
        lambda: list(read_vqa_v2(*paths, "{image_id}")),
        lambda: list(read_vlt5(folder / "list.json", paths[2])),
        lambda: list(read_blip(folder / "list.json", paths[2])),
    ):
        try:
            examples = read()
        except DataError as error:
            assert str(folder) in str(error)  # noqa: PT017
        else:
            assert all(isinstance(example.question, str) for example in examples)


def test_real_questions_with_ten_answers_and_real_images_are_read(shared_data):
    folder = shared_data / "coco"
    examples = list(
        read_vqa_v2(
            folder / "vqa_v2/questions.json",
            folder / "vqa_v2/annotations.json",
            folder / "images",
            "{image_id:012d}.jpg",
        )
    )
    assert len(examples) == 69
    assert all(example.image.is_file() and len(example.answers) == 10 for example in examples)
    assert any(len(example.scores) > 1 for example in examples)


def test_every_real_question_of_the_easy_set_is_read(shared_data):
    folder = shared_data / "easy_vqa"
    examples = list(
        read_vqa_v2(
            folder / "questions.json", folder / "annotations.json", folder / "images", "{image_id}.png"
        )
    )
    assert len(examples) == 38_575
    assert len({example.image for example in examples}) == 4_000
    assert len({example.best_answer[0] for example in examples}) == 13


@given(order=st.permutations(range(8)), n_seen=st.integers(0, 8))
def test_annotations_may_come_in_any_order(tmp_path_factory, order, n_seen):
    folder = tmp_path_factory.mktemp("vqa")
    questions = [question(i, i) for i in range(8)]
    annotations = [annotation(i, i, [*TEN[:-1], f"answer {i}"]) for i in range(8)]
    straight = list(read_vqa_v2(*write(folder, questions, annotations)[:2]))
    paths = write(folder, questions, [annotations[i] for i in order])[:2]
    assert list(read_vqa_v2(*paths)) == straight
    answered = Annotations(paths[1], paths[0], Problems())
    for i in range(n_seen):
        assert answered.of(i).answers[-1] == f"answer {i}"
    # Of the annotations that were read up to here, those of questions to come.
    n_read = max((order.index(i) for i in range(n_seen)), default=-1) + 1
    assert answered.n_held == n_read - n_seen


def test_an_annotation_that_nobody_asks_for_may_be_malformed(tmp_path):
    bad = annotation(3) | {"answers": "red"}
    paths = write(tmp_path, [question(1), question(2)], [annotation(1), bad, annotation(2)])
    answered = Annotations(paths[1], paths[0], Problems())
    assert answered.of(1) is not None
    assert answered.of(2) is not None
    answered.finish(all_asked=False)
    with pytest.raises(DataError, match="annotation 3 has no question"):
        answered.finish(all_asked=True)
    problems = Problems("skip")
    answered = Annotations(paths[1], paths[0], problems)
    assert answered.of(3) is None
    assert [bad.entry for bad in problems] == ["question 3"]
