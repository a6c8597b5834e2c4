"""What sets the tasks apart: their data, the score of what was generated, and its official result file."""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from PIL import Image

from amad.data.captions import CaptionDataset
from amad.data.images import Pixels
from amad.data.problems import Problems
from amad.data.translation import TranslationDataset, translation_prompt
from amad.data.vqa import GIB, VqaDataset
from amad.data.waiting import Wait, unseen
from amad.metrics import captions as caption_metrics
from amad.metrics import translation as translation_metrics
from amad.recipe_data import CaptionData, DataSection, TranslationData, VqaData
from amad.training.splits import CaptionSplits, Splits, TranslationSplits, VqaSplits

TaskDataset = VqaDataset | CaptionDataset | TranslationDataset
Prepare = Callable[[Image.Image], Pixels]


class LearnedTask(ABC):
    """A task with the data of a recipe, each split of which is read when it is first asked for.

    Attributes:
        items: What the validation set has one of per item, as people say it.
        training_items: Likewise the training set.
        figures: Names of the scores, the main one first, each with the decimals to which results are rounded.
        results_file: Name of the result file.
        splits: The examples behind the data sets.
    """

    items: ClassVar[str]
    training_items: ClassVar[str]
    figures: ClassVar[dict[str, int]]
    results_file: ClassVar[str] = "results.json"
    splits: Splits[Any, Any]
    _common: dict[str, Any]

    @property
    def _seen(self) -> dict[str, Any]:
        """What every data set of the task is made with."""
        return {**self._common, "regions": self.splits.regions}

    @property
    def problems(self) -> Problems:
        """The examples that were left out of what was read so far."""
        return self.splits.problems

    @property
    @abstractmethod
    def train(self) -> TaskDataset:
        """What to train on.

        Raises:
            DataError: if the data cannot be read or there is nothing to learn; see ``Splits``.
        """

    @property
    @abstractmethod
    def validation(self) -> TaskDataset | None:
        """What to validate on; None if the recipe does not say.

        Raises:
            DataError: if the data cannot be read; see ``Splits``.
        """

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

    @property
    def signature(self) -> str | None:
        """What the scorer says of how it scores, whatever the texts; None where it says nothing."""
        return None

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
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = training_items = "questions"
    figures: ClassVar[dict[str, int]] = {"accuracy": 2}

    def __init__(self, data: VqaData, seed: int, prepare: Prepare | None, wait: Wait = unseen) -> None:
        self.splits = VqaSplits(data, wait)
        self._seed = seed
        self._common = {"prompt": data.prompt, **_pixels(data, prepare)}

    @cached_property
    def train(self) -> VqaDataset:
        """Questions with sampled answers."""
        return VqaDataset(self.splits.train, training=True, seed=self._seed, **self._seen)

    @cached_property
    def validation(self) -> VqaDataset | None:
        """Questions with their best answer."""
        found = self.splits.validation
        return None if found is None else VqaDataset(found, training=False, **self._seen)

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
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = "images"
    training_items = "captions"
    figures: ClassVar[dict[str, int]] = {"CIDEr": 4, "Bleu_4": 4}

    def __init__(self, data: CaptionData, prepare: Prepare | None, wait: Wait = unseen) -> None:
        self.splits = CaptionSplits(data, wait)
        self._common = {"prompt": data.prompt, **_pixels(data, prepare)}

    @cached_property
    def train(self) -> CaptionDataset:
        """One item per caption."""
        return CaptionDataset(self.splits.train, training=True, **self._seen)

    @cached_property
    def validation(self) -> CaptionDataset | None:
        """One item per image."""
        found = self.splits.validation
        return None if found is None else CaptionDataset(found, training=False, **self._seen)

    @property
    def is_scored(self) -> bool:
        """Whether validation images have captions; official files give them to all images or none."""
        if self.validation is None or not all(example.captions for example in self.validation.examples):
            return False
        caption_metrics.refuse_missing()
        return True

    @property
    def signature(self) -> str:
        """How captions became tokens, and the scorers' version."""
        return caption_metrics.score_captions({0: ["a"]}, {0: "a"}, meteor=False, java=False).signature

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
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder, or there is no prompt for the languages.
    """

    items = training_items = "sentences"
    figures: ClassVar[dict[str, int]] = {"BLEU": 2}
    results_file = "results.txt"

    def __init__(self, data: TranslationData, prepare: Prepare | None, wait: Wait = unseen) -> None:
        self.splits = TranslationSplits(data, wait)
        prompt = data.prompt or translation_prompt(data.source, data.target)
        self._common = {"prompt": prompt, **_pixels(data, prepare)}

    @cached_property
    def train(self) -> TranslationDataset:
        """Sentences with their translation."""
        return TranslationDataset(self.splits.train, **self._seen)

    @cached_property
    def validation(self) -> TranslationDataset | None:
        """Likewise."""
        found = self.splits.validation
        return None if found is None else TranslationDataset(found, **self._seen)

    @property
    def is_scored(self) -> bool:
        """Whether there is a validation set: every sentence has its translation."""
        if self.validation is None:
            return False
        translation_metrics.refuse_missing()
        return True

    @property
    def signature(self) -> str:
        """sacreBLEU's."""
        return translation_metrics.score_translations([["a"]], ["a"], lowercase=True).signatures["BLEU"]

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


def load_task(
    data: VqaData | CaptionData | TranslationData, seed: int, prepare: Prepare | None, wait: Wait = unseen
) -> LearnedTask:
    """The task that data of this form is for.

    Args:
        data: The recipe's data.
        seed: Of what is sampled of the data.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder, or there is no prompt for the languages.
    """
    if isinstance(data, CaptionData):
        return CaptionTask(data, prepare, wait)
    if isinstance(data, TranslationData):
        return TranslationTask(data, prepare, wait)
    return VqaTask(data, seed, prepare, wait)


def _pixels(data: DataSection, prepare: Prepare | None) -> dict[str, Any]:
    return {"cache_bytes": int(data.image_cache_gib * GIB), "prepare": prepare}


def _lines(said: Sequence[str]) -> list[str]:
    """Each text on one line."""
    return [" ".join(text.split()) for text in said]
