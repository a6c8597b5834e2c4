import gzip
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amad.errors import DataError
from amad.metrics.vqa import answer_accuracy, mean_accuracy, score_vqa

REFERENCE_RUNS = [
    "all_yes",
    "annotator1",
    "hash_annotator",
    "hash_annotator_perturbed",
    "mca",
    "prior_by_type",
]
WORDS = st.sampled_from(["yes", "no", "Yes.", "2", "two", "a dog", "dog", "red-orange", "dont"])


@pytest.mark.parametrize("run", REFERENCE_RUNS)
def test_equals_the_official_scores_in_every_figure(shared_data, run):
    reference, data = shared_data / "metric_reference/vqa", shared_data / "vqa_v2_subset60k"
    expected = json.loads((reference / "expected.json").read_text())["valid"][run]
    per_question = json.loads(gzip.decompress((reference / "valid" / f"{run}_evalQA.json.gz").read_bytes()))

    scores = score_vqa(
        data / "questions_valid.json.gz",
        data / "annotations_valid.json.gz",
        reference / "valid" / f"{run}_results.json.gz",
    )

    assert scores.overall == expected["overall"]
    assert scores.per_answer_type == expected["perAnswerType"]
    assert scores.per_question_type == expected["perQuestionType"]
    assert {str(question): score for question, score in scores.per_question.items()} == per_question


def test_equals_the_official_scores_on_the_larger_training_part(shared_data, tmp_path):
    data = shared_data / "vqa_v2_subset60k"
    expected = json.loads((shared_data / "metric_reference/vqa/expected.json").read_text())["train"]
    annotations = json.loads(gzip.decompress((data / "annotations_train.json.gz").read_bytes()))[
        "annotations"
    ]
    results = tmp_path / "annotator1.json"
    results.write_text(
        json.dumps(
            [
                {"question_id": row["question_id"], "answer": row["answers"][0]["answer"]}
                for row in annotations
            ]
        )
    )
    scores = score_vqa(data / "questions_train.json.gz", data / "annotations_train.json.gz", results)
    assert scores.overall == expected["annotator1"]["overall"]


def plain_official(rows, prediction):
    """The official rule, step by step, with none of the short cuts."""
    from amad.metrics.vqa_answers import normalise_answer, strip_answer

    rows = [{**row, "answer": strip_answer(row["answer"])} for row in rows]
    prediction = strip_answer(prediction)
    if len({row["answer"] for row in rows}) > 1:
        rows = [{**row, "answer": normalise_answer(row["answer"])} for row in rows]
        prediction = normalise_answer(prediction)
    accuracies = []
    for one in rows:
        others = [row for row in rows if row != one]
        accuracies.append(min(1, len([row for row in others if row["answer"] == prediction]) / 3))
    return sum(accuracies) / len(accuracies)


@given(answers=st.lists(WORDS, min_size=1, max_size=12), prediction=WORDS)
def test_the_count_gives_what_leaving_out_each_annotator_gives(answers, prediction):
    rows = [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]
    assert answer_accuracy(answers, prediction) == pytest.approx(plain_official(rows, prediction), abs=1e-12)


@given(answers=st.lists(WORDS, min_size=2, max_size=10), prediction=WORDS, seed=st.integers(0, 9))
def test_annotators_who_share_an_id_are_left_out_together(tmp_path_factory, answers, prediction, seed):
    chance = random.Random(seed)
    rows = [{"answer": answer, "answer_id": chance.randrange(3)} for answer in answers]
    scores = score_vqa(*write(tmp_path_factory.mktemp("shared"), {1: rows}, {1: prediction}))
    assert scores.overall == pytest.approx(100 * plain_official(rows, prediction), abs=0.005001)


@pytest.mark.parametrize(("n_matches", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_ten_annotators_by_hand(n_matches, accuracy):
    answers = ["yes"] * n_matches + ["no"] * (10 - n_matches)
    assert answer_accuracy(answers, "yes") == pytest.approx(accuracy, abs=1e-12)


def test_nothing_is_normalised_where_all_annotators_agree():
    assert answer_accuracy(["yes"] * 10, "Yes") == 0
    assert answer_accuracy(["yes"] * 10, " yes\n") == 1
    assert answer_accuracy(["yes"] * 9 + ["no"], "Yes.") == 1


@given(answers=st.lists(WORDS, min_size=1, max_size=10), prediction=WORDS)
def test_the_order_of_annotators_does_not_matter(answers, prediction):
    assert answer_accuracy(answers, prediction) == answer_accuracy(sorted(answers), prediction)


def test_the_mean_is_in_percent():
    assert mean_accuracy([["a b"] * 10, ["no"] * 10], ["a b", "yes"]) == 50
    with pytest.raises(DataError, match="every question needs one prediction"):
        mean_accuracy([["no"] * 10], [])
    with pytest.raises(DataError, match="no predictions"):
        mean_accuracy([], [])
    with pytest.raises(DataError, match="there are none"):
        answer_accuracy([], "yes")


def write(folder, answers, predictions, **changes):
    """The three official files of questions {id: rows of answers} with predictions {id: answer}."""
    documents = {
        "questions": {"questions": [{"question_id": i, "image_id": 1, "question": "?"} for i in answers]},
        "annotations": {
            "annotations": [
                {
                    "question_id": i,
                    "image_id": 1,
                    "question_type": "is",
                    "answer_type": "other",
                    "answers": rows,
                }
                for i, rows in answers.items()
            ]
        },
        "results": [{"question_id": i, "answer": answer} for i, answer in predictions.items()],
    }
    documents |= changes
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return [folder / f"{name}.json" for name in ("questions", "annotations", "results")]


TEN = [{"answer": "yes", "answer_id": i} for i in range(1, 11)]


def test_a_small_set_by_hand(tmp_path):
    three_of_ten = [{"answer": "no", "answer_id": i} for i in range(3)] + TEN[3:]
    scores = score_vqa(*write(tmp_path, {1: TEN, "b": three_of_ten, 3: TEN}, {"b": "NO", 1: "yes", 3: "no"}))
    assert scores.per_question == {1: 100.0, "b": 90.0, 3: 0.0}
    assert scores.summary() == {
        "overall": 63.33,
        "per_answer_type": {"other": 63.33},
        "per_question_type": {"is": 63.33},
    }


@pytest.mark.parametrize(
    ("answers", "predictions", "changes", "message"),
    [
        (
            {1: TEN},
            {1: "a", 2: "a"},
            {},
            r"results\.json: question 2 is not in .*annotations\.json \(1 such\)",
        ),
        ({1: TEN, 2: TEN}, {1: "a"}, {}, r"results\.json: has no answer to question 2"),
        ({1: TEN}, {1: "a"}, {"questions": {"questions": []}}, "annotation 1 has no question"),
        ({1: TEN}, {1: "a"}, {"annotations": {"annotations": []}}, "has no annotation of question 1"),
        ({1: TEN}, {1: 5}, {}, r"results\.json, question 1: 'answer' must be a string"),
        (
            {1: TEN},
            {},
            {"results": [{"question_id": 1, "answer": "a"}] * 2},
            "question_id must be unique but 1",
        ),
        ({1: TEN}, {}, {"results": {"1": "yes"}}, "must hold a list"),
        ({1: []}, {1: "a"}, {}, "question 1: has no answers"),
        ({1: ["yes"]}, {1: "a"}, {}, "must be an object with a string 'answer'"),
        ({}, {}, {}, "nothing to score"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, answers, predictions, changes, message):
    with pytest.raises(DataError, match=message):
        score_vqa(*write(tmp_path, answers, predictions, **changes))
