"""The columns in which examples are stored, one form for each kind of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from datasets import Features, List, Value

from amad.data.captions import CaptionExample
from amad.data.translation import TranslationExample
from amad.data.vqa import VqaExample

Example = TypeVar("Example", bound=VqaExample | CaptionExample | TranslationExample)

_TEXT, _NUMBER = Value("string"), Value("float64")


@dataclass(frozen=True)
class RowForm(Generic[Example]):
    """How examples of one kind become rows and rows become examples.

    Attributes:
        features: Types of the columns; ``image_name`` is one of them.
        row: The columns of an example; its image is left out, because data files name it and folders hold it.
        example: The example of a row and the image that belongs to it.
    """

    features: Features
    row: Callable[[Example], dict[str, Any]]
    example: Callable[[Mapping[str, Any], Path | None], Example]


def _question_row(example: VqaExample) -> dict[str, Any]:
    return {
        "question_id": json.dumps(example.question_id),
        "image_id": json.dumps(example.image_id),
        "question": example.question,
        "answers": example.answers,
        "scored": list(example.scores),
        "scores": list(example.scores.values()),
        "question_type": example.question_type,
        "answer_type": example.answer_type,
        "image_name": example.image_name,
        "weight": example.weight,
    }


def _question(row: Mapping[str, Any], image: Path | None) -> VqaExample:
    return VqaExample(
        question_id=json.loads(row["question_id"]),
        image_id=json.loads(row["image_id"]),
        question=row["question"],
        answers=None if row["answers"] is None else tuple(row["answers"]),
        scores=dict(zip(row["scored"], row["scores"], strict=True)),
        image=image,
        question_type=row["question_type"],
        answer_type=row["answer_type"],
        image_name=row["image_name"],
        weight=row["weight"],
    )


QUESTIONS = RowForm(
    Features(
        {
            "question_id": _TEXT,
            "image_id": _TEXT,
            "question": _TEXT,
            "answers": List(_TEXT),
            "scored": List(_TEXT),
            "scores": List(_NUMBER),
            "question_type": _TEXT,
            "answer_type": _TEXT,
            "image_name": _TEXT,
            "weight": _NUMBER,
        }
    ),
    _question_row,
    _question,
)
"""Ids are stored as JSON, for they may be numbers or texts."""


def _caption_row(example: CaptionExample) -> dict[str, Any]:
    return {
        "image_id": json.dumps(example.image_id),
        "captions": example.captions,
        "split": example.split,
        "image_name": example.image_name,
    }


def _caption(row: Mapping[str, Any], image: Path | None) -> CaptionExample:
    return CaptionExample(
        image=image,
        image_id=json.loads(row["image_id"]),
        captions=tuple(row["captions"]),
        split=row["split"],
        image_name=row["image_name"],
    )


CAPTIONS = RowForm(
    Features({"image_id": _TEXT, "captions": List(_TEXT), "split": _TEXT, "image_name": _TEXT}),
    _caption_row,
    _caption,
)


def _sentence_row(example: TranslationExample) -> dict[str, Any]:
    return {
        "source": example.source,
        "target": example.target,
        "line": example.line,
        "image_name": example.image_name,
    }


def _sentence(row: Mapping[str, Any], image: Path | None) -> TranslationExample:
    return TranslationExample(row["source"], row["target"], image, row["line"], row["image_name"])


SENTENCES = RowForm(
    Features({"source": _TEXT, "target": _TEXT, "line": Value("int64"), "image_name": _TEXT}),
    _sentence_row,
    _sentence,
)
