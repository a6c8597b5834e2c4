"""Vision-language pre-training as a task of recipes."""

from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.captions import CaptionDataset, CaptionExample
from amad.data.decoding import keep_whole
from amad.data.paths import inside
from amad.data.pretraining import MATCHED, MISMATCHED, PretrainingDataset
from amad.data.pretraining_objects import BoxNames, ObjectSource, RegionNames
from amad.data.problems import PicturedExample, Problems
from amad.data.regions import Regions, with_regions
from amad.data.vqa import VqaDataset, VqaExample
from amad.data.waiting import Wait, unseen
from amad.errors import DataError, RecipeError
from amad.recipe_data import PretrainingData, PretrainingFiles
from amad.training.learned import LearnedTask, Prepare, pixels_of
from amad.training.splits import Splits, read_captions, read_questions


class PretrainingSplits(Splits[PretrainingData, CaptionExample]):
    """Images with captions, and what else each split has; see :class:`Splits`."""

    @cached_property
    def train(self) -> list[CaptionExample]:
        """What to train on; see :class:`Splits`."""
        found = self.train_sources.captions
        if not any(example.captions for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} images has a caption, so there is nothing to learn. "
                "Give data.train.captions a file that has some."
            )
        return found

    @property
    def validation(self) -> list[CaptionExample] | None:
        """What to validate on; see :class:`Splits`."""
        sources = self.validation_sources
        return None if sources is None else sources.captions[: self.data.max_validation_examples]

    @cached_property
    def train_sources(self) -> "SplitSources":
        """All that there is to train on."""
        return SplitSources(self.root, self.data.train, "data.train", self.problems, self._wait)

    @cached_property
    def validation_sources(self) -> "SplitSources | None":
        """All that there is to validate on, without a limit; None if the recipe names nothing."""
        files = self.data.validation
        if files is None:
            return None
        return SplitSources(self.root, files, "data.validation", self.problems, self._wait)


class SplitSources:
    """All that a recipe names for one split, each part read when it is first asked for.

    Args:
        root: Folder of all files.
        files: What the recipe has for this split.
        key: Where it stands in the recipe.
        problems: What to do about bad examples.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: from each part, as what reads it.
    """

    def __init__(
        self, root: Path, files: PretrainingFiles, key: str, problems: Problems, wait: Wait = unseen
    ) -> None:
        self._root = root
        self._files = files
        self._key = key
        self._problems = problems
        self._wait = wait

    @cached_property
    def regions(self) -> Regions | None:
        """Features in the place of images; None where images are read."""
        given = self._files.regions
        if given is None:
            return None
        paths = [self._inside(name, "regions.files") for name in given.files]
        return Regions(paths, given.n_regions, given.n_features)

    @cached_property
    def captions(self) -> list[CaptionExample]:
        """Images with captions."""
        found: list[CaptionExample] = []
        for files in self._files.captions:
            key = f"{self._key}.captions"
            found += self._kept(*read_captions(self._root, files, key, self._problems, self.regions is None))
        return found

    @cached_property
    def questions(self) -> list[VqaExample]:
        """Questions about images; none where the recipe names no file."""
        found: list[VqaExample] = []
        for files in self._files.questions:
            key = f"{self._key}.questions"
            found += self._kept(*read_questions(self._root, files, key, self._problems, self.regions is None))
        return found

    @cached_property
    def objects(self) -> ObjectSource | None:
        """The named objects of images; None where the recipe names none."""
        boxes, given = self._files.boxes, self._files.regions
        if boxes is not None:
            return BoxNames(self._inside(boxes.instances, "boxes.instances"), boxes.grid)
        if given is None or self.regions is None or given.objects is None or given.attributes is None:
            return None
        objects = self._inside(given.objects, "regions.objects")
        return RegionNames(self.regions, objects, self._inside(given.attributes, "regions.attributes"))

    def _kept(self, examples: list[PicturedExample], source: Path) -> list[PicturedExample]:
        """Without those that have no whole image, or no features, where such examples are left out."""
        if self._problems.skips:
            examples = keep_whole(examples, source, self._problems, self._wait)
        return examples if self.regions is None else with_regions(examples, self.regions, self._problems)

    def _inside(self, name: str, key: str) -> Path:
        return inside(self._root, name, f"{self._key}.{key}")


class PretrainingTask(LearnedTask):
    """VL-T5's pre-training: of each task the loss, and the share of targets that greedy decoding gives exactly.

    A half of the matches to validate on are none, so that guessing gives 50 %.

    Args:
        data: The recipe's data.
        seed: Of the draws.
        prepare: Makes the array of an image before it is kept in memory.
        wait: Shows how far it is where reading takes long.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = "examples"
    training_items = "captions"

    def __init__(self, data: PretrainingData, seed: int, prepare: Prepare, wait: Wait = unseen) -> None:
        self.splits: PretrainingSplits = PretrainingSplits(data, wait)
        self._data = data
        self._seed = seed
        self._pixels = pixels_of(data, prepare)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of items, in the order of their numbers."""
        return tuple(self._data.drawn_tasks)

    @cached_property
    def train(self) -> PretrainingDataset:
        """One item per caption, with a task drawn for it."""
        return self._dataset(self.splits.train, self.splits.train_sources, training=True)

    @cached_property
    def validation(self) -> PretrainingDataset | None:
        """The same items for every seed."""
        captions, sources = self.splits.validation, self.splits.validation_sources
        return (
            None if captions is None or sources is None else self._dataset(captions, sources, training=False)
        )

    @cached_property
    def figures(self) -> dict[str, int]:
        """``accuracy_TASK`` in percent and ``loss_TASK`` of the tasks to validate on, matching first."""
        tasks = self.kinds if self.validation is None else self.validation.occurring
        ordered = sorted(tasks, key=lambda task: task != "match")
        return {f"accuracy_{task}": 2 for task in ordered} | {f"loss_{task}": 4 for task in ordered}

    @property
    def is_scored(self) -> bool:
        """Whether there is a validation set."""
        return self.validation is not None

    def check_model(self, model: PreTrainedModel) -> None:
        """See that named boxes lie on the patches that the model has.

        Raises:
            RecipeError: if they lie on another grid.
        """
        boxes, grid = self._data.train.boxes, getattr(model, "visual_grid", None)
        if boxes is not None and {"describe", "find"} & set(self.kinds) and grid != (boxes.grid, boxes.grid):
            seen = "no grid of patches" if grid is None else f"{grid[0]} x {grid[1]} patches"
            raise RecipeError(
                f"data.train.boxes.grid is {boxes.grid}, and the model has {seen}. Give the number of its patches per "
                "side, or leave boxes out."
            )

    def check_words(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that a tokenizer knows the words that stand for something.

        Raises:
            DataError: if it knows no sentinel, not as many visual tokens as images have, or makes the same of
                "true" and "false".
        """
        needed = ["<extra_id_0>"] if "span" in self.kinds else []
        objects = self.splits.train_sources.objects
        if objects is not None and {"describe", "find"} & set(self.kinds):
            needed += ["<vis_extra_id_0>", f"<vis_extra_id_{objects.n_tokens - 1}>"]
        unknown = [
            word for word in needed if tokenizer.convert_tokens_to_ids(word) in (None, tokenizer.unk_token_id)
        ]
        answers = [tokenizer(word)["input_ids"] for word in (MATCHED, MISMATCHED)]
        if unknown or ("match" in self.kinds and answers[0] == answers[1]):
            what = f"{', '.join(unknown)}" if unknown else f"what sets {MATCHED!r} and {MISMATCHED!r} apart"
            raise DataError(
                f"the tokenizer does not know {what}, which pre-training needs. Leave model.tokenizer out to train one "
                "on this data, and give it to the runs that follow; or set that task's weight in data.tasks to 0."
            )

    def _dataset(
        self, captions: list[CaptionExample], sources: SplitSources, training: bool
    ) -> PretrainingDataset:
        tasks = self._data.drawn_tasks
        limit = None if training else self._data.max_validation_examples
        asked = sources.questions[:limit] if "question" in tasks else []
        return PretrainingDataset(
            CaptionDataset(captions, training, regions=sources.regions, **self._pixels),
            tasks,
            VqaDataset(asked, training, seed=self._seed) if asked else None,
            sources.objects if {"describe", "find"} & tasks.keys() else None,
            self._data.mask_ratio,
            self._seed,
        )
