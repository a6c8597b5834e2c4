"""The examples of a recipe's splits, for each task."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from amad.data.captions import CaptionExample, read_blip_captions, read_coco_captions, read_karpathy
from amad.data.decoding import keep_whole
from amad.data.paths import fill_template, inside
from amad.data.problems import PicturedExample, Problems
from amad.data.regions import Regions, with_regions
from amad.data.translation import TranslationExample, read_multi30k
from amad.data.visual_genome import read_visual_genome
from amad.data.vqa import (
    OFFICIAL_IMAGE_NAME,
    VISUAL_GENOME_WEIGHT,
    VqaExample,
    holdout_by_image,
    read_blip,
    read_vlt5,
    read_vqa_v2,
)
from amad.data.waiting import Wait, unseen
from amad.errors import DataError
from amad.recipe_data import CaptionData, CaptionFiles, DataSection, TranslationData, VqaData, VqaFiles

Data = TypeVar("Data", bound=DataSection)
Example = TypeVar("Example", VqaExample, CaptionExample, TranslationExample)


class Splits(ABC, Generic[Data, Example]):
    """The examples of a recipe's splits, each read when it is first asked for.

    Attributes:
        names: The attributes that each hold examples of one kind.
        problems: The examples that were left out of what was read so far.

    Args:
        data: The recipe's data.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    names: ClassVar[tuple[str, ...]] = ("train", "validation")

    def __init__(self, data: Data, wait: Wait = unseen) -> None:
        self.data = data
        self.root = Path(data.root)
        self.problems = Problems(data.on_bad_example)
        self._wait = wait
        if not self.root.is_dir():
            raise DataError(
                f"data.root {self.root} is no folder. Give the folder of the data with data.root=FOLDER."
            )

    @property
    @abstractmethod
    def train(self) -> Sequence[Example]:
        """What to train on.

        Raises:
            DataError: if a file is missing, malformed or outside of the root, or there is nothing to learn.
        """

    @property
    @abstractmethod
    def validation(self) -> Sequence[Example] | None:
        """What to validate on, at most as many as the recipe says; None if it names nothing.

        Raises:
            DataError: if a file is missing, malformed or outside of the root.
        """

    @cached_property
    def regions(self) -> Regions | None:
        """Region features of all images; None where images are read themselves.

        Raises:
            DataError: if a file of them is missing, of another kind or outside of the root.
        """
        given = self.data.regions
        if given is None:
            return None
        files = [inside(self.root, name, "data.regions.files") for name in given.files]
        return Regions(files, given.n_regions, given.n_features)

    def _images(self, folder: str, key: str) -> Path | None:
        """The folder of images; None where none is needed."""
        return inside(self.root, folder, key) if self.data.regions is None else None

    def _seen(self, examples: list[PicturedExample], source: Path) -> list[PicturedExample]:
        """The examples of ``source`` that have region features; where bad ones are left out, whose image is whole."""
        if self.regions is not None:
            return with_regions(examples, self.regions, source, self.problems, self._wait)
        if not self.problems.skips:
            return examples
        return keep_whole(examples, source, self.problems, self._wait)

    def _questions(self, files: VqaFiles, key: str) -> list[VqaExample]:
        """The questions that the recipe names under ``key``."""
        questions = inside(self.root, files.questions, f"{key}.questions")
        images = None
        if self.regions is None:
            images = [inside(self.root, folder, f"{key}.images") for folder in files.images]
        weight = 1.0 if files.weight is None else files.weight
        if files.format == "blip":
            found = read_blip(questions, images, self.problems, files.weight)
        elif files.format == "visual-genome":
            weight = VISUAL_GENOME_WEIGHT if files.weight is None else files.weight
            name = files.image_name or "{image_id}.jpg"
            found = read_visual_genome(questions, images, name, self.problems, weight)
        elif files.format == "vl-t5":
            name = files.image_name or "{image_id}.jpg"
            found = read_vlt5(questions, images, name, self.problems, weight)
        else:
            annotations = None
            if files.annotations is not None:
                annotations = inside(self.root, files.annotations, f"{key}.annotations")
            name = files.image_name or OFFICIAL_IMAGE_NAME
            found = read_vqa_v2(questions, annotations, images, name, problems=self.problems, weight=weight)
        return self._seen(found, questions)

    def _captions(self, files: CaptionFiles, key: str) -> list[CaptionExample]:
        """The images with captions that the recipe names under ``key``."""
        captions = inside(self.root, files.captions, f"{key}.captions")
        images = self._images(files.images, f"{key}.images")
        if files.format == "blip":
            found = read_blip_captions(captions, images, problems=self.problems)
        elif files.format == "karpathy":
            found = read_karpathy(captions, files.split or "", images, self.problems)
        else:
            found = read_coco_captions(captions, images, files.split, self.problems)
        return self._seen(found, captions)


class VqaSplits(Splits[VqaData, VqaExample]):
    """Questions; see :class:`Splits`."""

    @property
    def train(self) -> list[VqaExample]:
        """What to train on; see :class:`Splits`."""
        return self._parts[0]

    @cached_property
    def validation(self) -> list[VqaExample] | None:
        """What to validate on; see :class:`Splits`."""
        if self.data.validation is not None:
            found = self._questions(self.data.validation, "data.validation")
        elif self.data.holdout is not None:
            found = self._parts[1]
        else:
            return None
        return found[: self.data.max_validation_questions]

    @cached_property
    def _parts(self) -> tuple[list[VqaExample], list[VqaExample]]:
        """The training files without what is held out, and that."""
        found = self._questions(self.data.train, "data.train")
        for position, files in enumerate(self.data.also_train):
            found = found + self._questions(files, f"data.also_train.{position}")
        if not any(example.scores for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} questions has an answer, so there is nothing to learn. "
                "Give data.train.annotations, or a file that has answers."
            )
        holdout = self.data.holdout
        return (found, []) if holdout is None else holdout_by_image(found, holdout.share, holdout.seed)


class CaptionSplits(Splits[CaptionData, CaptionExample]):
    """Images with captions; see :class:`Splits`."""

    @cached_property
    def train(self) -> list[CaptionExample]:
        """What to train on; see :class:`Splits`."""
        found = self._captions(self.data.train, "data.train")
        if not any(example.captions for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} images has a caption, so there is nothing to learn. "
                "Give data.train.captions a file that has some."
            )
        return found

    @cached_property
    def validation(self) -> list[CaptionExample] | None:
        """What to validate on; see :class:`Splits`."""
        if self.data.validation is None:
            return None
        return self._captions(self.data.validation, "data.validation")[: self.data.max_validation_examples]


class TranslationSplits(Splits[TranslationData, TranslationExample]):
    """Sentences with their translation; see :class:`Splits`."""

    @cached_property
    def train(self) -> list[TranslationExample]:
        """What to train on; see :class:`Splits`."""
        return self._read(self.data.train)

    @cached_property
    def validation(self) -> list[TranslationExample] | None:
        """What to validate on; see :class:`Splits`."""
        if self.data.validation is None:
            return None
        return self._read(self.data.validation)[: self.data.max_validation_examples]

    def _read(self, split: str) -> list[TranslationExample]:
        data = self.data
        source, target = (self._sentences(split, language) for language in (data.source, data.target))
        if source == target:
            raise DataError(
                f"data.sentences = {data.sentences!r} names one file, {source}, for both languages. Put "
                "{language} in it."
            )
        key = "data.image_names"
        names = inside(self.root, fill_template(data.image_names, key, split=split), key)
        images = self._images(data.images, "data.images")
        return self._seen(read_multi30k(source, target, names, images, self.problems), names)

    def _sentences(self, split: str, language: str) -> Path:
        key = "data.sentences"
        name = fill_template(self.data.sentences, key, split=split, language=language)
        return inside(self.root, name, key)
