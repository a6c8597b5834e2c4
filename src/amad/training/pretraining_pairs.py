"""BLIP's pre-training as a task of recipes."""

from functools import cached_property

from transformers import PreTrainedModel

from amad.data.augmentation import CropAndFlip
from amad.data.captions import CaptionDataset
from amad.data.pretraining_pairs import CaptionPairs
from amad.data.waiting import Wait, unseen
from amad.errors import RecipeError
from amad.losses.objective import Term
from amad.losses.own import OwnLoss
from amad.losses.task import TaskLoss
from amad.models.blip_pretraining import BlipForPretraining
from amad.recipe import TaskTerm
from amad.recipe_data import PretrainingData
from amad.training.learned import LearnedTask, Prepare, pixels_of
from amad.training.pretraining import PretrainingSplits


class PairsTask(LearnedTask):
    """BLIP's pre-training: the losses of contrast, matching and captioning, and how often the first two are right.

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
        data: PretrainingData,
        prepare: Prepare | None,
        wait: Wait = unseen,
        augment: CropAndFlip | None = None,
    ) -> None:
        self.splits: PretrainingSplits = PretrainingSplits(data, wait)
        self._data = data
        self._common = pixels_of(data, prepare) | {"augment": augment}

    @cached_property
    def train(self) -> CaptionPairs:
        """One pair per caption."""
        return CaptionPairs(CaptionDataset(self.splits.train, training=True, **self._seen))

    @cached_property
    def validation(self) -> CaptionPairs | None:
        """One pair per image, with its first caption."""
        found = self.splits.validation
        return None if found is None else CaptionPairs(CaptionDataset(found, training=False, **self._seen))

    @property
    def figures(self) -> dict[str, int]:
        """Accuracies in percent, of which guessing gives 50 in matching, and losses in nats."""
        accuracies = dict.fromkeys(("accuracy_match", "accuracy_contrast"), 2)
        return accuracies | dict.fromkeys((f"loss_{task}" for task in ("match", "contrast", "caption")), 4)

    @property
    def is_scored(self) -> bool:
        """Whether there is a validation set."""
        return self.validation is not None

    def terms(self, chosen: TaskTerm) -> dict[str, tuple[float, Term]]:
        """The three losses, weighted as ``data.tasks`` says; one that it leaves out is shown and moves nothing."""
        caption = TaskLoss(reduction=chosen.reduction, label_smoothing=chosen.label_smoothing)
        losses: dict[str, Term] = {
            "contrast": OwnLoss("contrast", ["accuracy_contrast"]),
            "match": OwnLoss("match", ["accuracy_match"]),
            "caption": caption,
        }
        weights: dict[str, float] = {str(task): weight for task, weight in self._data.tasks.items()}
        return {name: (chosen.weight * weights.get(name, 0.0), loss) for name, loss in losses.items()}

    def check_model(self, model: PreTrainedModel) -> None:
        """See that a model computes these losses.

        Raises:
            RecipeError: if it does not.
        """
        if not isinstance(model, BlipForPretraining):
            raise RecipeError(
                f"data.tasks contrast and caption are those of BLIP's pre-training, and the model is a "
                f"{type(model).__name__}. Give span, match and others of an encoder-decoder, or model_type: blip."
            )
