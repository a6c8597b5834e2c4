import json

import pytest
from PIL import Image

from amad.data.problems import Problems
from amad.data.visual_genome import read_visual_genome
from amad.data.vqa import VISUAL_GENOME_WEIGHT, VqaDataset
from amad.errors import DataError


def pair(qa_id=1, answer="A red shirt.", question="What is the guy wearing?", **more):
    return {
        "qa_id": qa_id,
        "image_id": 1,
        "question": question,
        "answer": answer,
        "a_objects": [],
        "q_objects": [],
    } | more


def write(folder, rows):
    (folder / "question_answers.json").write_text(json.dumps(rows))
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder / "question_answers.json"


def test_one_answer_is_certain_in_its_normalised_form(tmp_path):
    path = write(tmp_path, [{"id": 1, "qas": [pair(), pair(2, "Two.")]}, {"id": 2, "qas": [pair(3, "The.")]}])
    first, second, third = list(read_visual_genome(path, tmp_path))
    assert (first.question_id, first.image_id, first.image) == (1, 1, tmp_path / "1.jpg")
    assert (first.answers, first.scores) == (("A red shirt.",), {"red shirt": 1.0})
    assert (second.scores, second.accuracy("2")) == ({"2": 1.0}, 1.0)
    assert third.scores == {}
    for weight in (VISUAL_GENOME_WEIGHT, 0.7):
        (example, *_) = list(read_visual_genome(path, tmp_path, weight=weight))
        item = VqaDataset([example], training=True)[0]
        assert (item["text"], item["target"], item["weight"]) == (
            "vqa: What is the guy wearing?",
            "red shirt",
            weight,
        )
    assert first.weight == VISUAL_GENOME_WEIGHT == 0.2


def test_images_are_found_in_either_of_the_published_folders(tmp_path):
    path = write(tmp_path, [{"id": i, "qas": [pair(i)]} for i in (1, 2, 3)])
    folders = [tmp_path / "VG_100K", tmp_path / "VG_100K_2"]
    for folder, name in zip(folders, ("1.jpg", "2.jpg"), strict=True):
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
    with pytest.raises(DataError, match=r"item 2: no image 3\.jpg in .*VG_100K, .*VG_100K_2\."):
        list(read_visual_genome(path, folders))
    problems = Problems("skip")
    found = list(read_visual_genome(path, folders, problems=problems))
    assert [one.image.parent.name for one in found] == ["VG_100K", "VG_100K_2"]
    assert [one.entry for one in problems] == ["item 2"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": 1, "qas": [pair(2)]}, "item 1: every image must be listed once but 1"),
        ({"id": 2, "qas": [pair(1)]}, "item 1, question 0: every qa_id must be unique but 1"),
        ({"id": 2, "qas": [pair(2, None)]}, "item 1, question 0: 'answer' must be a string"),
        ({"id": 2, "qas": [pair(2, question=3)]}, "item 1, question 0: 'question' must be a string"),
        ({"id": 2, "qas": ["what?"]}, "item 1, question 0: must be an object"),
        ({"id": 2}, "item 1: has no 'qas'"),
        ({"id": 3, "qas": [pair(2)]}, r"3\.jpg: no such image, needed by .*question 2"),
        ({"id": "../3", "qas": [pair(2)]}, "item 1: .* leaves the data folder"),
    ],
)
def test_bad_entries_are_refused_or_left_out(tmp_path, bad, message):
    path = write(tmp_path, [{"id": 1, "qas": [pair()]}, bad])
    with pytest.raises(DataError, match=message):
        list(read_visual_genome(path, tmp_path))
    problems = Problems("skip")
    assert [one.question_id for one in list(read_visual_genome(path, tmp_path, problems=problems))] == [1]
    assert problems.n_bad == 1


@pytest.mark.parametrize("rows", [[], [{"id": 1, "qas": []}]])
def test_a_file_without_questions_is_refused(tmp_path, rows):
    with pytest.raises(DataError, match="must have a question and has none"):
        list(read_visual_genome(write(tmp_path, rows)))


def test_real_questions_are_read(shared_data):
    examples = list(read_visual_genome(shared_data / "format_samples/vg_question_answers_sample.json"))
    assert len(examples) == 3_393
    assert len({one.image_id for one in examples}) == 50
    assert (examples[0].question, examples[0].best_answer) == ("What color is the clock?", ("green", 1.0))
