"""Vision-language pre-training as a task of recipes."""

from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.augmentation import CropAndFlip
from amad.data.captions import CaptionDataset, CaptionExample
from amad.data.paths import inside
from amad.data.pretraining import MATCHED, MISMATCHED, PretrainingDataset
from amad.data.pretraining_objects import GROUNDED, BoxNames, ObjectSource, RegionNames
from amad.data.table import Joined
from amad.data.vqa import VqaDataset, VqaExample
from amad.data.waiting import Wait, unseen
from amad.errors import DataError, RecipeError
from amad.models.blip_pretraining import BlipForPretraining
from amad.recipe_data import PretrainingData, PretrainingFiles
from amad.training.learned import LearnedTask, Prepare, pixels_of
from amad.training.splits import Splits


class PretrainingSplits(Splits[PretrainingData, CaptionExample]):
    """Images with captions, questions about images, and names of what is in them; see :class:`Splits`."""

    names = ("train", "validation", "train_questions", "validation_questions")

    @cached_property
    def train(self) -> Sequence[CaptionExample]:
        """What to train on; see :class:`Splits`."""
        found = self._joined(self.data.train, "data.train")
        if not any(example.captions for example in found):
            raise DataError(
                f"data.train: none of the {len(found)} images has a caption, so there is nothing to learn. "
                "Give data.train.captions a file that has some."
            )
        return found

    @cached_property
    def validation(self) -> Sequence[CaptionExample] | None:
        """What to validate on; see :class:`Splits`."""
        files = self.data.validation
        if files is None:
            return None
        return self._joined(files, "data.validation")[: self.data.max_validation_examples]

    @cached_property
    def train_questions(self) -> Sequence[VqaExample] | None:
        """Questions to train on; None without the task or a file.

        Raises:
            DataError: as :class:`Splits`.
        """
        return self._asked(self.data.train, "data.train")

    @cached_property
    def validation_questions(self) -> Sequence[VqaExample] | None:
        """Questions to validate on; likewise, and at most as many as the recipe says.

        Raises:
            DataError: as :class:`Splits`.
        """
        files = self.data.validation
        asked = None if files is None else self._asked(files, "data.validation")
        return None if asked is None else asked[: self.data.max_validation_examples]

    @cached_property
    def objects(self) -> ObjectSource | None:
        """The named objects of all images; None without a task on them, or where the recipe names none.

        Raises:
            DataError: as ``RegionNames`` or ``BoxNames``.
        """
        data = self.data
        if not set(GROUNDED) & data.drawn_tasks.keys():
            return None
        if data.boxes is not None:
            key = "data.boxes.instances"
            return BoxNames([inside(self.root, name, key) for name in data.boxes.instances], data.boxes.grid)
        if self.regions is None or data.region_names is None:
            return None
        objects = inside(self.root, data.region_names.objects, "data.region_names.objects")
        attributes = inside(self.root, data.region_names.attributes, "data.region_names.attributes")
        return RegionNames(self.regions, objects, attributes)

    def _joined(self, files: PretrainingFiles, key: str) -> Sequence[CaptionExample]:
        """The captioned images of all sets."""
        return Joined(
            [self._captions(one, f"{key}.captions.{number}") for number, one in enumerate(files.captions)]
        )

    def _asked(self, files: PretrainingFiles, key: str) -> Sequence[VqaExample] | None:
        """The questions of all sets."""
        if "question" not in self.data.drawn_tasks or not files.questions:
            return None
        return Joined(
            [self._questions(one, f"{key}.questions.{number}") for number, one in enumerate(files.questions)]
        )


class PretrainingTask(LearnedTask):
    """VL-T5's pre-training: of each task the loss, and the share of targets that greedy decoding gives exactly.

    A half of the matches to validate on are none, so that guessing gives 50 %.

    Args:
        data: The recipe's data.
        seed: Of the draws.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
        wait: Shows how far it is where reading takes long.
        augment: Gives another view of each training image in each epoch.

    Raises:
        DataError: if ``data.root`` is no folder.
    """

    items = "examples"
    training_items = "captions"

    def __init__(
        self,
        data: PretrainingData,
        seed: int,
        prepare: Prepare | None,
        wait: Wait = unseen,
        augment: CropAndFlip | None = None,
    ) -> None:
        self.splits: PretrainingSplits = PretrainingSplits(data, wait)
        self._data = data
        self._seed = seed
        self._common = pixels_of(data, prepare) | {"augment": augment}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of items, in the order of their numbers."""
        return tuple(self._data.drawn_tasks)

    @cached_property
    def train(self) -> PretrainingDataset:
        """One item per caption, with a task drawn for it."""
        splits = self.splits
        return self._dataset(splits.train, splits.train_questions, training=True)

    @cached_property
    def validation(self) -> PretrainingDataset | None:
        """The same items for every seed."""
        found = self.splits.validation
        return (
            None if found is None else self._dataset(found, self.splits.validation_questions, training=False)
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
        """See that a model learns from texts, and that named boxes lie on the patches that it has.

        Raises:
            RecipeError: if it is BLIP, or they lie on another grid.
        """
        if isinstance(model, BlipForPretraining):
            raise RecipeError(
                f"data.tasks {', '.join(self.kinds)} are those of an encoder-decoder, and the model is BLIP. Give "
                "contrast, match and caption, or another model."
            )
        boxes, grid = self._data.boxes, getattr(model, "visual_grid", None)
        if boxes is not None and self.splits.objects is not None and grid != (boxes.grid, boxes.grid):
            seen = "no grid of patches" if grid is None else f"{grid[0]} x {grid[1]} patches"
            raise RecipeError(
                f"data.boxes.grid is {boxes.grid}, and the model has {seen}. Give the number of its patches per "
                "side, or leave boxes out."
            )

    def check_words(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that a tokenizer knows the words that stand for something.

        Raises:
            DataError: if it knows no sentinel, not as many visual tokens as images have, or makes the same of
                "true" and "false".
        """
        needed = ["<extra_id_0>"] if "span" in self.kinds else []
        objects = self.splits.objects
        if objects is not None:
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
        self, captions: Sequence[CaptionExample], questions: Sequence[VqaExample] | None, training: bool
    ) -> PretrainingDataset:
        asked = None
        if questions is not None:
            asked = VqaDataset(questions, training, seed=self._seed, **self._seen)
        return PretrainingDataset(
            CaptionDataset(captions, training, **self._seen),
            self._data.drawn_tasks,
            asked,
            self.splits.objects,
            self._data.mask_ratio,
            self._seed,
        )
