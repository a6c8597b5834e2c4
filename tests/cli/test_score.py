import gzip
import json
from pathlib import Path

import pytest


def files(questions, annotations, results):
    return ["score", "vqa", "--questions", questions, "--annotations", annotations, "--results", results]


def own(scenes, results):
    return files(scenes / "questions_val.json", scenes / "annotations_val.json", results)


@pytest.fixture
def half_right(scenes):
    """Results that answer every other question as all annotators did."""
    rows = json.loads((scenes / "annotations_val.json").read_text())["annotations"]
    rows = [
        {"question_id": row["question_id"], "answer": row["multiple_choice_answer"] if i % 2 else "nothing"}
        for i, row in enumerate(rows)
    ]
    Path("results.json").write_text(json.dumps(rows))
    return Path("results.json")


def test_half_of_the_answers_right_is_fifty_percent(amad, scenes, half_right):
    told = amad.document(*own(scenes, half_right))
    assert told["overall"] == 50.0
    assert set(told) == {"overall", "per_answer_type", "per_question_type"}
    assert "50.00" in amad.succeed(*own(scenes, half_right))


def test_plain_and_gzipped_files_score_alike(amad, scenes, half_right):
    packed = []
    for path in (scenes / "questions_val.json", scenes / "annotations_val.json", half_right):
        packed.append(Path(f"{path.name}.gz"))
        packed[-1].write_bytes(gzip.compress(path.read_bytes()))
    assert amad.document(*files(*packed)) == amad.document(*own(scenes, half_right))


def test_a_published_result_file_gets_its_published_score(amad, shared_data):
    folder = shared_data / "metric_reference" / "vqa"
    expected = json.loads((folder / "expected.json").read_text())["valid"]["mca"]
    data = shared_data / "vqa_v2_subset60k"
    found = amad.document(
        *files(
            data / "questions_valid.json.gz",
            data / "annotations_valid.json.gz",
            folder / "valid" / "mca_results.json.gz",
        )
    )
    assert found["overall"] == expected["overall"]
    assert found["per_answer_type"] == expected["perAnswerType"]
    assert found["per_question_type"] == expected["perQuestionType"]


def test_a_question_without_an_answer_is_refused(amad, scenes, half_right):
    rows = json.loads(half_right.read_text())
    half_right.write_text(json.dumps(rows[1:]))
    message = amad.refuse(*own(scenes, half_right))
    assert str(rows[0]["question_id"]) in message


def test_a_missing_and_a_truncated_file_are_named(amad, scenes, half_right):
    assert "absent.json" in amad.refuse(*own(scenes, "absent.json"))
    half_right.write_bytes(half_right.read_bytes()[:-20])
    assert "results.json" in amad.refuse(*own(scenes, half_right))
