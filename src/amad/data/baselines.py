"""How far one comes without looking: the answers that a question alone suggests."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amad.data.vqa_files import VqaExample
from amad.errors import DataError


@dataclass(frozen=True)
class Baselines:
    """VQA accuracy, in percent, of answering without the image.

    Attributes:
        majority_answer: The answer with the highest summed soft score in training.
        majority: Accuracy of giving it to every question.
        question_only: Accuracy of giving every wording its own best answer in training, and the majority
            answer to wordings that training does not have.
        n_train: Questions learned from.
        n_validation: Questions scored.
    """

    majority_answer: str
    majority: float
    question_only: float
    n_train: int
    n_validation: int


def answer_baselines(train: Sequence[VqaExample], validation: Sequence[VqaExample]) -> Baselines:
    """Both baselines, learned on ``train`` and scored on ``validation`` by soft scores.

    Raises:
        DataError: if either has no question, or training has no answer.
    """
    overall: Counter[str] = Counter()
    by_wording: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for answer, score in example.scores.items():
            overall[answer] += score  # type: ignore[assignment]
            by_wording[_wording(example)][answer] += score  # type: ignore[assignment]
    if not overall or not validation:
        raise DataError(
            f"baselines need answers to learn from and questions to score, but there are {len(overall)} "
            "distinct "
            f"answers in training and {len(validation)} questions in validation. Check both splits."
        )
    majority = _best(overall)
    best = {wording: _best(answers) for wording, answers in by_wording.items()}
    return Baselines(
        majority_answer=majority,
        majority=_percent(example.scores.get(majority, 0.0) for example in validation),
        question_only=_percent(
            example.scores.get(best.get(_wording(example), majority), 0.0) for example in validation
        ),
        n_train=len(train),
        n_validation=len(validation),
    )


def _wording(example: VqaExample) -> str:
    return " ".join(example.question.lower().split())


def _best(answers: Counter[str]) -> str:
    """The highest, the alphabetically first among equals."""
    return min(answers, key=lambda answer: (-answers[answer], answer))


def _percent(scores: Iterable[float]) -> float:
    values = list(scores)
    return round(100 * sum(values) / len(values), 2)
