"""What sets the tasks apart: their data, the score of what was generated, and its official result file."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from amad.data.augmentation import CropAndFlip
from amad.data.captions import CaptionDataset
from amad.data.paths import inside
from amad.data.translation import TranslationDataset, translation_prompt
from amad.data.vqa import VqaDataset
from amad.data.vqa_lists import read_answer_list
from amad.data.waiting import Wait, unseen
from amad.metrics import captions as caption_metrics
from amad.metrics import translation as translation_metrics
from amad.recipe_data import CaptionData, PretrainingData, RecipeData, TranslationData, VqaData
from amad.training.learned import GeneratingTask, LearnedTask, Prepare, TaskDataset, pixels_of
from amad.training.pretraining import PretrainingTask
from amad.training.pretraining_pairs import PairsTask
from amad.training.splits import CaptionSplits, TranslationSplits, VqaSplits

__all__ = [
    "CaptionTask",
    "GeneratingTask",
    "LearnedTask",
    "TaskDataset",
    "TranslationTask",
    "VqaTask",
    "load_task",
]


class VqaTask(GeneratingTask):
    """Visual question answering: accuracy in percent, official where ten answers are known.

    Args:
        data: The recipe's data.
        seed: Of the sampling of answers.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.
        augment: Gives another view of each training image in each epoch.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = training_items = "questions"

    def __init__(
        self,
        data: VqaData,
        seed: int,
        prepare: Prepare | None,
        wait: Wait = unseen,
        augment: CropAndFlip | None = None,
    ) -> None:
        self.splits = VqaSplits(data, wait)
        self._training: dict[str, Any] = {
            "seed": seed,
            "every_answer": data.targets == "every",
            "augment": augment,
        }
        self._common = {"prompt": data.prompt, **pixels_of(data, prepare)}

    @property
    def figures(self) -> dict[str, int]:
        """``accuracy``, in percent."""
        return {"accuracy": 2}

    @cached_property
    def train(self) -> VqaDataset:
        """Questions with sampled answers, or with all."""
        return VqaDataset(self.splits.train, training=True, **self._training, **self._seen)

    @cached_property
    def validation(self) -> VqaDataset | None:
        """Questions with their best answer."""
        found = self.splits.validation
        return None if found is None else VqaDataset(found, training=False, **self._seen)

    def answer_list(self, name: str | None) -> list[str]:
        """The answers of a JSON list below the root; of the training set, the best scored first, when None.

        Answers of the training set are in their official, normalised form.

        Raises:
            DataError: if the file is missing or no list of texts, or the training set cannot be read.
        """
        if name is not None:
            return read_answer_list(inside(self.splits.root, name, "data.ranking.answers"))
        found: Counter[str] = Counter()
        for example in self.splits.train:
            for answer, score in example.scores.items():
                found[answer] += score  # type: ignore[assignment]
        return sorted(found, key=lambda answer: (-found[answer], answer))

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


class CaptionTask(GeneratingTask):
    """Captioning: CIDEr-D, from 0 to 10, and BLEU-4, from 0 to 1, as the reference scorers give them.

    Captions become tokens by our tokenizer, so that a run needs no Java and its scores compare with one another;
    the signature says so. ``amad score captions`` scores the result file as others do.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.
        augment: Gives another view of each training image in each epoch.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = "images"
    training_items = "captions"

    def __init__(
        self,
        data: CaptionData,
        prepare: Prepare | None,
        wait: Wait = unseen,
        augment: CropAndFlip | None = None,
    ) -> None:
        self.splits = CaptionSplits(data, wait)
        self._augment = augment
        self._common = {"prompt": data.prompt, **pixels_of(data, prepare)}

    @property
    def figures(self) -> dict[str, int]:
        """``CIDEr``, CIDEr-D from 0 to 10, and ``Bleu_4``, from 0 to 1."""
        return {"CIDEr": 4, "Bleu_4": 4}

    @cached_property
    def train(self) -> CaptionDataset:
        """One item per caption."""
        return CaptionDataset(self.splits.train, training=True, augment=self._augment, **self._seen)

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


class TranslationTask(GeneratingTask):
    """Translation: sacreBLEU from 0 to 100, without case as VL-T5 scores Multi30K.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder, or there is no prompt for the languages.
    """

    items = training_items = "sentences"
    results_file = "results.txt"

    def __init__(self, data: TranslationData, prepare: Prepare | None, wait: Wait = unseen) -> None:
        self.splits = TranslationSplits(data, wait)
        prompt = data.prompt or translation_prompt(data.source, data.target)
        self._common = {"prompt": prompt, **pixels_of(data, prepare)}

    @property
    def figures(self) -> dict[str, int]:
        """``BLEU``, from 0 to 100."""
        return {"BLEU": 2}

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
    data: RecipeData,
    seed: int,
    prepare: Prepare | None,
    wait: Wait = unseen,
    augment: CropAndFlip | None = None,
) -> LearnedTask:
    """The task that data of this form is for.

    Args:
        data: The recipe's data.
        seed: Of what is sampled of the data.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.
        augment: Gives another view of each training image in each epoch; not for translation.

    Raises:
        DataError: if ``data.root`` is no folder, or there is no prompt for the languages.
    """
    if isinstance(data, CaptionData):
        return CaptionTask(data, prepare, wait, augment)
    if isinstance(data, TranslationData):
        return TranslationTask(data, prepare, wait)
    if isinstance(data, PretrainingData):
        if data.learns_pairs:
            return PairsTask(data, prepare, wait, augment)
        return PretrainingTask(data, seed, prepare, wait, augment)
    return VqaTask(data, seed, prepare, wait, augment)


def _lines(said: Sequence[str]) -> list[str]:
    """Each text on one line."""
    return [" ".join(text.split()) for text in said]
