"""What every task is to a run: its data and its figures; and what those add that are scored on generated texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.captions import CaptionDataset
from amad.data.images import Pixels
from amad.data.pretraining import PretrainingDataset
from amad.data.pretraining_pairs import CaptionPairs
from amad.data.problems import Problems
from amad.data.translation import TranslationDataset
from amad.data.vqa import GIB, VqaDataset
from amad.losses.objective import Term
from amad.losses.task import TaskLoss
from amad.recipe import TaskTerm
from amad.recipe_data import DataSection
from amad.training.splits import Splits

TaskDataset = VqaDataset | CaptionDataset | TranslationDataset | PretrainingDataset | CaptionPairs
Prepare = Callable[[Image.Image], Pixels]


class LearnedTask(ABC):
    """A task with the data of a recipe, each split of which is read when it is first asked for.

    Attributes:
        items: What the validation set has one of per item, as people say it.
        training_items: Likewise the training set.
        splits: The examples behind the data sets.
    """

    items: ClassVar[str]
    training_items: ClassVar[str]
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
    def figures(self) -> dict[str, int]:
        """Names of the scores, the main one first, each with the decimals to which results are rounded."""

    @property
    def main_figure(self) -> str:
        """The score that a curve is drawn of."""
        return next(iter(self.figures))

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

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the kinds of items that batches mix, in the order of their numbers; empty for one task alone."""
        return ()

    def terms(self, chosen: TaskTerm) -> dict[str, tuple[float, Term]]:
        """What is learned from the ground truth: terms of the objective by name, with their weights.

        Args:
            chosen: What the recipe says of it.
        """
        loss = TaskLoss(reduction=chosen.reduction, label_smoothing=chosen.label_smoothing, kinds=self.kinds)
        return {"task": (chosen.weight, loss)}

    def check_model(self, model: PreTrainedModel) -> None:
        """See that a model sees what the task speaks of.

        Raises:
            RecipeError: if it does not.
        """
        return

    def check_words(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See that a tokenizer knows the words without which the task makes no sense.

        Raises:
            DataError: if it does not.
        """
        return


class GeneratingTask(LearnedTask):
    """A task whose score is that of generated texts.

    Attributes:
        results_file: Name of the result file.
    """

    results_file: ClassVar[str] = "results.json"

    @abstractmethod
    def score(self, said: Sequence[str]) -> dict[str, Any]:
        """The ``figures`` of one text per validation item, and ``signature`` where the scorer has one.

        Only where ``is_scored``.
        """

    @abstractmethod
    def results(self, said: Sequence[str]) -> str:
        """The official result file of one text per validation item."""


def pixels_of(data: DataSection, prepare: Prepare | None) -> dict[str, Any]:
    """How the data sets of a recipe read images.

    Args:
        data: The recipe's data.
        prepare: Makes the array of an image before it is kept in memory; its pixels when None.
    """
    return {"cache_bytes": int(data.image_cache_gib * GIB), "prepare": prepare}
