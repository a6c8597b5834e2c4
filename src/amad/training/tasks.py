"""What sets the tasks apart: their data, the score of what was generated, and its official result file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from amad.data.captions import CaptionDataset
from amad.data.translation import TranslationDataset
from amad.data.vqa import VqaDataset
from amad.metrics import captions as caption_metrics
from amad.metrics import translation as translation_metrics
from amad.recipe_data import CaptionData, TranslationData, VqaData
from amad.training.splits import Prepare, caption_splits, translation_splits, vqa_splits

TaskDataset = VqaDataset | CaptionDataset | TranslationDataset


class LearnedTask(ABC):
    """A task with the data of a recipe.

    Attributes:
        items: What the validation set has one of per item, as people say it.
        training_items: Likewise the training set.
        figures: Names of the scores, the main one first, each with the decimals to which results are rounded.
        results_file: Name of the result file.
        train: What to train on.
        validation: What to validate on; None if the recipe does not say.
    """

    items: ClassVar[str]
    training_items: ClassVar[str]
    figures: ClassVar[dict[str, int]]
    results_file: ClassVar[str] = "results.json"
    train: TaskDataset
    validation: TaskDataset | None

    @property
    def main_figure(self) -> str:
        """The score that a curve is drawn of."""
        return next(iter(self.figures))

    @property
    @abstractmethod
    def is_scored(self) -> bool:
        """Whether the validation set has what to score against.

        Raises:
            DataError: if it has, and the scorer is not installed.
        """

    @abstractmethod
    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """The ``figures`` of one text per validation item, and ``signature`` where the scorer has one.

        Only where ``is_scored``.
        """

    @abstractmethod
    def results(self, said: Sequence[str]) -> str:
        """The official result file of one text per validation item."""


class VqaTask(LearnedTask):
    """Visual question answering: accuracy in percent, official where ten answers are known.

    Args:
        data: The recipe's data.
        seed: Of the sampling of answers.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: as ``vqa_splits``.
    """

    items = training_items = "questions"
    figures: ClassVar[dict[str, int]] = {"accuracy": 2}

    def __init__(self, data: VqaData, seed: int, prepare: Prepare) -> None:
        self.train: VqaDataset
        self.validation: VqaDataset | None
        self.train, self.validation = vqa_splits(data, seed, prepare)

    @property
    def is_scored(self) -> bool:
        """Whether a validation question has an answer."""
        return self.validation is not None and any(example.scores for example in self.validation.examples)

    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """``accuracy``; the soft score that the set gives an answer where ten are not known."""
        assert self.validation is not None
        scores = [
            example.accuracy(answer) for example, answer in zip(self.validation.examples, said, strict=True)
        ]
        return {"accuracy": 100 * sum(scores) / len(scores)}

    def results(self, said: Sequence[str]) -> str:
        """``[{"question_id": .., "answer": ".."}]``."""
        assert self.validation is not None
        return json.dumps(
            [
                {"question_id": example.question_id, "answer": answer}
                for example, answer in zip(self.validation.examples, said, strict=True)
            ],
            ensure_ascii=False,
        )


class CaptionTask(LearnedTask):
    """Captioning: CIDEr-D, from 0 to 10, and BLEU-4, from 0 to 1, as the reference scorers give them.

    Captions become tokens by our tokenizer, so that a run needs no Java and its scores compare with one another;
    the signature says so. ``amad score captions`` scores the result file as others do.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: as ``caption_splits``.
    """

    items = "images"
    training_items = "captions"
    figures: ClassVar[dict[str, int]] = {"CIDEr": 4, "Bleu_4": 4}

    def __init__(self, data: CaptionData, prepare: Prepare) -> None:
        self.train: CaptionDataset
        self.validation: CaptionDataset | None
        self.train, self.validation = caption_splits(data, prepare)

    @property
    def is_scored(self) -> bool:
        """Whether validation images have captions; official files give them to all images or none."""
        if self.validation is None or not all(example.captions for example in self.validation.examples):
            return False
        caption_metrics.refuse_missing()
        return True

    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """``CIDEr``, ``Bleu_4`` and ``signature``."""
        assert self.validation is not None
        examples = self.validation.examples
        scores = caption_metrics.score_captions(
            {example.image_id: example.captions for example in examples},
            {example.image_id: caption for example, caption in zip(examples, said, strict=True)},
            meteor=False,
            java=False,
        )
        return {name: scores.corpus[name] for name in self.figures} | {"signature": scores.signature}

    def results(self, said: Sequence[str]) -> str:
        """``[{"image_id": .., "caption": ".."}]``."""
        assert self.validation is not None
        return json.dumps(
            [
                {"image_id": example.image_id, "caption": caption}
                for example, caption in zip(self.validation.examples, said, strict=True)
            ],
            ensure_ascii=False,
        )


class TranslationTask(LearnedTask):
    """Translation: sacreBLEU from 0 to 100, without case as VL-T5 scores Multi30K.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: as ``translation_splits``.
    """

    items = training_items = "sentences"
    figures: ClassVar[dict[str, int]] = {"BLEU": 2}
    results_file = "results.txt"

    def __init__(self, data: TranslationData, prepare: Prepare) -> None:
        self.train: TranslationDataset
        self.validation: TranslationDataset | None
        self.train, self.validation = translation_splits(data, prepare)

    @property
    def is_scored(self) -> bool:
        """Whether there is a validation set: every sentence has its translation."""
        if self.validation is None:
            return False
        translation_metrics.refuse_missing()
        return True

    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """``BLEU`` and ``signature``."""
        assert self.validation is not None
        scores = translation_metrics.score_translations(
            [[example.target for example in self.validation.examples]], _lines(said), lowercase=True
        )
        return {"BLEU": scores.bleu, "signature": scores.signatures["BLEU"]}

    def results(self, said: Sequence[str]) -> str:
        """One line per sentence."""
        return "".join(f"{line}\n" for line in _lines(said))


def load_task(data: VqaData | CaptionData | TranslationData, seed: int, prepare: Prepare) -> LearnedTask:
    """The task that data of this form is for.

    Args:
        data: The recipe's data.
        seed: Of what is sampled of the data.
        prepare: Makes the array of an image before it is kept in memory.

    Raises:
        DataError: if the data cannot be read.
    """
    if isinstance(data, CaptionData):
        return CaptionTask(data, prepare)
    if isinstance(data, TranslationData):
        return TranslationTask(data, prepare)
    return VqaTask(data, seed, prepare)


def _lines(said: Sequence[str]) -> list[str]:
    """Each text on one line."""
    return [" ".join(text.split()) for text in said]
