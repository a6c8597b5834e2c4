"""VQA accuracy as the official code computes it (GT-Vision-Lab/VQA, vqaEval.py), faults included."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from amad.errors import DataError
from amad.metrics.documents import field, index_by, read_rows, refuse_unmatched
from amad.metrics.vqa_answers import normalise_answer, strip_answer


@dataclass(frozen=True)
class VqaScores:
    """VQA accuracies in percent, rounded to two decimals as officially.

    Attributes:
        overall: Mean over questions.
        per_answer_type: Mean over the questions of each ``answer_type``.
        per_question_type: Mean over the questions of each ``question_type``.
        per_question: Of each question by its id.
    """

    overall: float
    per_answer_type: Mapping[str, float]
    per_question_type: Mapping[str, float]
    per_question: Mapping[int | str, float]

    def summary(self) -> dict[str, Any]:
        """What is published: everything but the single questions."""
        return {
            "overall": self.overall,
            "per_answer_type": dict(self.per_answer_type),
            "per_question_type": dict(self.per_question_type),
        }


def score_vqa(questions: Path, annotations: Path, results: Path) -> VqaScores:
    """Official VQA accuracy of a result file: ``[{"question_id": .., "answer": ".."}]``, plain or .gz.

    Raises:
        DataError: if a file is missing, truncated or malformed; a question id occurs twice in one; or the
            three do not hold the same questions.
    """
    asked = index_by(read_rows(questions, "questions"), "question_id", questions)
    annotated = index_by(read_rows(annotations, "annotations"), "question_id", annotations)
    given = index_by(read_rows(results), "question_id", results)
    refuse_unmatched(asked, annotated, lambda one: f"{annotations}: has no annotation of question {one}")
    refuse_unmatched(
        annotated, asked, lambda one: f"{annotations}: annotation {one} has no question in {questions}"
    )
    refuse_unmatched(given, annotated, lambda one: f"{results}: question {one} is not in {annotations}")
    refuse_unmatched(annotated, given, lambda one: f"{results}: has no answer to question {one}")

    accuracies: dict[int | str, float] = {}
    by_answer_type: dict[str, list[float]] = {}
    by_question_type: dict[str, list[float]] = {}
    for question_id, annotation in annotated.items():
        where = f"{annotations}, question {question_id}"
        prediction = field(given[question_id], "answer", str, f"{results}, question {question_id}")
        accuracy = _row_accuracy(field(annotation, "answers", list, where), prediction, where)
        accuracies[question_id] = accuracy
        by_answer_type.setdefault(field(annotation, "answer_type", str, where), []).append(accuracy)
        by_question_type.setdefault(field(annotation, "question_type", str, where), []).append(accuracy)
    if not accuracies:
        raise DataError(f"{annotations}: has no annotation, so there is nothing to score. Check the file.")
    return VqaScores(
        overall=_percent(accuracies.values()),
        per_answer_type={kind: _percent(values) for kind, values in by_answer_type.items()},
        per_question_type={kind: _percent(values) for kind, values in by_question_type.items()},
        per_question={question_id: round(100 * accuracy, 2) for question_id, accuracy in accuracies.items()},
    )


def answer_accuracy(answers: Sequence[str], prediction: str) -> float:
    """VQA accuracy of one prediction against the answers of different annotators, from 0 to 1.

        mean over annotators i of min(1, matches among the others / 3)

    With ten annotators that is 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 and more matches. If all annotators
    wrote the same string, neither side is normalised: "Yes" then scores 0 against ten times "yes".

    Raises:
        DataError: if there is no answer.
    """
    if not answers:
        raise DataError("a prediction is scored against annotators' answers and there are none.")
    raw = tuple(map(strip_answer, answers))
    if len(set(raw)) == 1:
        n_matches = len(raw) if raw[0] == strip_answer(prediction) else 0
    else:
        n_matches = sum(normalise_answer(answer) == normalise_answer(prediction) for answer in raw)
    return _leave_one_out(n_matches, len(raw))


def mean_accuracy(answers: Iterable[Sequence[str]], predictions: Iterable[str]) -> float:
    """Mean ``answer_accuracy`` in percent, not rounded: what is watched while training.

    Raises:
        DataError: if there are no predictions, or not as many as questions.
    """
    try:
        accuracies = [answer_accuracy(*pair) for pair in zip(answers, predictions, strict=True)]
    except ValueError:
        raise DataError(
            "every question needs one prediction, but there are more of one than of the other."
        ) from None
    if not accuracies:
        raise DataError("there are no predictions to score. Check that the validation set is not empty.")
    return 100 * sum(accuracies) / len(accuracies)


def _row_accuracy(rows: list[Any], prediction: str, where: str) -> float:
    """``answer_accuracy`` of official answer objects, which are told apart by all that they hold."""
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("answer"), str):
            raise DataError(f"{where}: each of 'answers' must be an object with a string 'answer'.")
    if not rows:
        raise DataError(f"{where}: has no answers, so no prediction can be scored. Mend the file.")
    answers = [row["answer"] for row in rows]
    if len({str(row.get("answer_id")) for row in rows}) == len(rows):
        return answer_accuracy(answers, prediction)
    return _repeated_accuracy(rows, prediction)


def _repeated_accuracy(rows: list[dict[str, Any]], prediction: str) -> float:
    """As officially where annotators share an id: leaving one out leaves out all objects that equal it."""
    raw = [strip_answer(row["answer"]) for row in rows]
    compare = normalise_answer if len(set(raw)) > 1 else strip_answer
    forms = [{**row, "answer": compare(answer)} for row, answer in zip(rows, raw, strict=True)]
    wanted = compare(prediction)
    accuracies: list[float] = [
        min(1.0, sum(other["answer"] == wanted for other in forms if other != left_out) / 3)
        for left_out in forms
    ]
    return sum(accuracies) / len(accuracies)


@lru_cache(maxsize=1024)
def _leave_one_out(n_matches: int, n_answers: int) -> float:
    if_left_out, if_kept = min(1.0, (n_matches - 1) / 3), min(1.0, n_matches / 3)
    return (n_matches * if_left_out + (n_answers - n_matches) * if_kept) / n_answers


def _percent(accuracies: Iterable[float]) -> float:
    values = list(accuracies)
    return round(100 * sum(values) / len(values), 2)
