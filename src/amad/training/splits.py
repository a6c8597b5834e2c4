"""The examples of a recipe's splits, for each task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from amad.data.captions import CaptionExample, read_blip_captions, read_coco_captions, read_karpathy
from amad.data.decoding import broken_images
from amad.data.lxmert_files import read_lxmert_captions, read_lxmert_questions
from amad.data.paths import ImageFolders, fill_template, inside
from amad.data.problems import Problems
from amad.data.regions import Regions, lacking_regions
from amad.data.rows import CAPTIONS, QUESTIONS, SENTENCES, RowForm
from amad.data.sampling import shuffled
from amad.data.table import Joined, Table, stored_table
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
from amad.recipe_data import (
    CaptionData,
    CaptionFiles,
    DataSection,
    Subset,
    TranslationData,
    VqaData,
    VqaFiles,
)

Data = TypeVar("Data", bound=DataSection)
Example = TypeVar("Example", bound=VqaExample | CaptionExample | TranslationExample)
Kind = TypeVar("Kind", bound=VqaExample | CaptionExample | TranslationExample)


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

    def _questions(self, files: VqaFiles, key: str) -> Table[VqaExample]:
        """The questions that the recipe names under ``key``."""
        questions = inside(self.root, files.questions, f"{key}.questions")
        annotations = None
        if files.annotations is not None:
            annotations = inside(self.root, files.annotations, f"{key}.annotations")
        name = files.image_name or (OFFICIAL_IMAGE_NAME if files.format == "vqa-v2" else "{image_id}.jpg")
        usual = VISUAL_GENOME_WEIGHT if files.format == "visual-genome" else 1.0
        weight = usual if files.weight is None else files.weight

        def read(problems: Problems) -> Iterable[VqaExample]:
            match files.format:
                case "blip":
                    return read_blip(questions, None, problems, files.weight)
                case "lxmert":
                    return read_lxmert_questions(questions, None, name, problems, weight)
                case "visual-genome":
                    return read_visual_genome(questions, None, name, problems, weight)
                case "vl-t5":
                    return read_vlt5(questions, None, name, problems, weight, annotations)
            return read_vqa_v2(questions, annotations, None, name, problems=problems, weight=weight)

        sources = [path for path in (questions, annotations) if path is not None]
        how = [files.format, files.weight, name]
        return self._good(QUESTIONS, sources, how, read, self._folders(files.images, f"{key}.images"))

    def _captions(self, files: CaptionFiles, key: str) -> Table[CaptionExample]:
        """The images with captions that the recipe names under ``key``."""
        captions = inside(self.root, files.captions, f"{key}.captions")

        def read(problems: Problems) -> Iterable[CaptionExample]:
            if files.format == "blip":
                return read_blip_captions(captions, problems=problems)
            if files.format == "lxmert":
                return read_lxmert_captions(captions, problems=problems)
            if files.format == "karpathy":
                return read_karpathy(captions, files.split or "", problems=problems)
            return read_coco_captions(captions, None, files.split, problems)

        how = [files.format, files.split]
        return self._good(CAPTIONS, [captions], how, read, self._folders([files.images], f"{key}.images"))

    def _folders(self, folders: list[str], key: str) -> ImageFolders:
        """The folders of images; none where region features stand for them."""
        return ImageFolders([inside(self.root, folder, key) for folder in folders if not self.data.regions])

    def _good(
        self,
        form: RowForm[Kind],
        sources: list[Path],
        how: list[Any],
        read: Callable[[Problems], Iterable[Kind]],
        folders: ImageFolders,
    ) -> Table[Kind]:
        """The examples of these files that have an image or region features; whole ones, where others are left out."""
        table = stored_table(form, sources, how, read, folders, self.problems, self._wait)
        names = table.image_names()
        if self.regions is not None:
            wrong = lacking_regions(names, self.regions, self.problems.skips, self._wait)
        else:
            where = str(sources[0])
            wrong = folders.missing(names, where)
            if self.problems.skips:
                paths = {name: folders.find(name, where) for name in names if name not in wrong}
                broken = broken_images((path for path in paths.values() if path is not None), self._wait)
                wrong |= {name: broken[path] for name, path in paths.items() if path in broken}
        return table.without(wrong, self.problems)


class VqaSplits(Splits[VqaData, VqaExample]):
    """Questions; see :class:`Splits`."""

    @cached_property
    def train(self) -> Sequence[VqaExample]:
        """What to train on; see :class:`Splits`."""
        return _subset(self._parts[0], self.data.subset)

    @cached_property
    def validation(self) -> Sequence[VqaExample] | None:
        """What to validate on; see :class:`Splits`."""
        found: Sequence[VqaExample]
        if self.data.validation is not None:
            found = self._questions(self.data.validation, "data.validation")
        elif self.data.holdout is not None:
            found = self._parts[1]
        else:
            return None
        return found[: self.data.max_validation_questions]

    @cached_property
    def _parts(self) -> tuple[Table[VqaExample] | Joined[VqaExample], Sequence[VqaExample]]:
        """The training files without what is held out, and that."""
        first = self._questions(self.data.train, "data.train")
        more = [
            self._questions(files, f"data.also_train.{number}")
            for number, files in enumerate(self.data.also_train)
        ]
        found = Joined([first, *more])
        if not any(example.scores for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} questions has an answer, so there is nothing to learn. "
                "Give data.train.annotations, or a file that has answers."
            )
        holdout = self.data.holdout
        if holdout is None:
            return found, []
        trained, held = holdout_by_image(first, holdout.share, holdout.seed)
        return first.select(trained), first.select(held)


class CaptionSplits(Splits[CaptionData, CaptionExample]):
    """Images with captions; see :class:`Splits`."""

    @cached_property
    def train(self) -> Sequence[CaptionExample]:
        """What to train on; see :class:`Splits`."""
        found = self._captions(self.data.train, "data.train")
        if not any(example.captions for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} images has a caption, so there is nothing to learn. "
                "Give data.train.captions a file that has some."
            )
        return _subset(found, self.data.subset)

    @cached_property
    def validation(self) -> Sequence[CaptionExample] | None:
        """What to validate on; see :class:`Splits`."""
        if self.data.validation is None:
            return None
        return self._captions(self.data.validation, "data.validation")[: self.data.max_validation_examples]


class TranslationSplits(Splits[TranslationData, TranslationExample]):
    """Sentences with their translation; see :class:`Splits`."""

    @cached_property
    def train(self) -> Sequence[TranslationExample]:
        """What to train on; see :class:`Splits`."""
        return _subset(self._read(self.data.train), self.data.subset)

    @cached_property
    def validation(self) -> Sequence[TranslationExample] | None:
        """What to validate on; see :class:`Splits`."""
        if self.data.validation is None:
            return None
        return self._read(self.data.validation)[: self.data.max_validation_examples]

    def _read(self, split: str) -> Table[TranslationExample]:
        data = self.data
        source, target = (self._sentences(split, language) for language in (data.source, data.target))
        if source == target:
            raise DataError(
                f"data.sentences = {data.sentences!r} names one file, {source}, for both languages. Put "
                "{language} in it."
            )
        key = "data.image_names"
        names = inside(self.root, fill_template(data.image_names, key, split=split), key)
        folders = self._folders([data.images], "data.images")

        def read(problems: Problems) -> Iterable[TranslationExample]:
            return read_multi30k(source, target, names, problems=problems)

        # The list of images is what names them, and so what a bad image is told of.
        return self._good(SENTENCES, [names, source, target], [], read, folders)

    def _sentences(self, split: str, language: str) -> Path:
        key = "data.sentences"
        name = fill_template(self.data.sentences, key, split=split, language=language)
        return inside(self.root, name, key)


def _subset(examples: Table[Kind] | Joined[Kind], subset: Subset | None) -> Sequence[Kind]:
    """The examples of a share of the images, rounded, at least one; one without an image counts as its own."""
    if subset is None:
        return examples
    names = [index if name is None else name for index, name in enumerate(examples.names())]
    order = shuffled(names, subset.seed)
    chosen = set(order[: max(1, round(subset.share * len(order)))])
    return examples.select([index for index, name in enumerate(names) if name in chosen])
