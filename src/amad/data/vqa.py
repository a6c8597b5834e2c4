"""Visual question answering as a data set to train and to validate on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from amad.data.augmentation import CropAndFlip
from amad.data.images import Pixels, open_image
from amad.data.regions import Regions, visual_inputs
from amad.data.sampling import Epoch, shuffled, uniform
from amad.data.vqa_files import (
    OFFICIAL_IMAGE_NAME,
    VISUAL_GENOME_WEIGHT,
    VqaExample,
    read_vqa_v2,
)
from amad.data.vqa_lists import read_blip, read_vlt5
from amad.errors import DataError

__all__ = [
    "OFFICIAL_IMAGE_NAME",
    "VISUAL_GENOME_WEIGHT",
    "ImageCache",
    "VqaDataset",
    "VqaExample",
    "holdout_by_image",
    "read_blip",
    "read_vlt5",
    "read_vqa_v2",
]

GIB = 1 << 30


def holdout_by_image(
    examples: Sequence[VqaExample], share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """The numbers of the examples to train on and of those to validate on, with no image in both.

    ``share`` of the images, rounded, at least one, is held out with all their questions; which ones depends
    only on the set of images and the seed. Both lists ascend.

    Raises:
        DataError: if ``share`` is not between 0 and 1, or there are fewer than two images.
    """
    if not 0 < share < 1:
        raise DataError(f"the share of images to hold out must be between 0 and 1 but is {share}. Try 0.1.")
    images = [example.image_id for example in examples]
    order = shuffled(images, seed)
    if len(order) < 2:
        raise DataError(f"holding images out needs two images or more and there are {len(order)}.")
    held = set(order[: min(max(1, round(share * len(order))), len(order) - 1)])
    kept: tuple[list[int], list[int]] = ([], [])
    for number, image in enumerate(images):
        kept[image in held].append(number)
    return kept


class ImageCache:
    """Decoded images kept in memory, up to a number of bytes.

    What is in stays in: when training reads every image once per epoch, throwing old ones out would always
    throw out the next one needed. A loader's worker processes each keep their own.

    Args:
        max_bytes: Of pixels; 0 keeps nothing.
        prepare: Makes the array to keep of an image, such as ``ImageTransform.resize``; the plain pixels when
            absent.
    """

    def __init__(self, max_bytes: int, prepare: Callable[[Image.Image], Pixels] | None = None) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._prepare = prepare if prepare is not None else np.asarray
        self._images: dict[Path, Pixels] = {}

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, path: Path) -> Pixels:
        """The image, read-only.

        Raises:
            DataError: if the file is missing, truncated or no image.
        """
        pixels = self._images.get(path)
        if pixels is None:
            pixels = self._prepare(open_image(path))
            pixels.flags.writeable = False
            if self.n_bytes + pixels.nbytes <= self.max_bytes:
                self._images[path] = pixels
                self.n_bytes += pixels.nbytes
        return pixels


class VqaDataset(Dataset[dict[str, Any]]):
    """Examples as items for ``Seq2SeqCollator``.

    An item has ``text``, ``target``, ``weight`` (the soft score of the target times the question's weight),
    ``index``, and either ``image`` (pixels) or ``vis_feats`` and ``boxes`` where the example has one. Examples
    without any answer have the target "" at weight 0, as in VL-T5, so they add nothing to the loss.

    While training the target is sampled in proportion to the soft scores, as in VL-T5, by a rule of seed,
    epoch and index alone: the order of reading, the number of workers and an interruption change nothing.
    Otherwise it is the answer of most annotators, the earliest among equals.

    With ``every_answer`` an item of a training set has ``targets``, all answers, and ``weights``, their shares times
    the question's weight, in the place of ``target`` and ``weight``: BLIP's form. See ``VqaExample.answer_shares``.

    Args:
        examples: A table, or a list of what ``read_vqa_v2``, ``read_vlt5`` or ``read_blip`` gave.
        training: Sample targets.
        prompt: The text; ``{question}`` is replaced.
        seed: Of the sampling.
        regions: Give region features instead of pixels; see ``Regions``.
        cache_bytes: Bytes of decoded images to keep in memory.
        prepare: Makes the array of an image before it is kept; see ``ImageCache``.
        every_answer: Give all answers while training.
        augment: Gives another view of each image in each epoch while training; ``prepare`` is then not done.
    """

    def __init__(
        self,
        examples: Sequence[VqaExample],
        training: bool,
        prompt: str = "vqa: {question}",
        seed: int = 0,
        regions: Regions | None = None,
        cache_bytes: int = GIB,
        prepare: Callable[[Image.Image], Pixels] | None = None,
        every_answer: bool = False,
        augment: CropAndFlip | None = None,
    ) -> None:
        if not examples:
            raise DataError(
                "a data set needs at least one question and has none. Check the files and the split."
            )
        self.examples = examples
        self.training = training
        self.prompt = prompt
        self.seed = seed
        self.regions = regions
        self.every_answer = every_answer and training
        self.augment = augment if training else None
        self.images = ImageCache(cache_bytes, None if self.augment is not None else prepare)
        self._epoch = Epoch()

    def __len__(self) -> int:
        return len(self.examples)

    def set_epoch(self, epoch: int) -> None:
        """Sample the targets, and take the views of images, of this epoch from now on."""
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item.

        Raises:
            DataError: if its image or its region features cannot be read.
        """
        example = self.examples[index]
        item: dict[str, Any] = {"text": self._ask(example), "index": index}
        if self.every_answer:
            shares = example.answer_shares or {"": 0.0}
            item |= {
                "targets": tuple(shares),
                "weights": tuple(share * example.weight for share in shares.values()),
            }
        else:
            target, weight = self._sample(example, index) if self.training else example.best_answer
            item |= {"target": target, "weight": weight * example.weight}
        item |= visual_inputs(example, self.images.__getitem__, self.regions)
        if self.augment is not None and "image" in item:
            item["image"] = self.augment(item["image"], int(self._epoch), index)
        return item

    def text(self, index: int) -> str:
        """What the text encoder reads; needs no image."""
        return self._ask(self.examples[index])

    def texts(self) -> list[str]:
        """Every text and every answer that is learned, to train a tokenizer on; reads no image."""
        asked: list[str] = []
        said: list[str] = []
        for example in self.examples:
            asked.append(self._ask(example))
            said += example.answer_shares if self.every_answer else example.scores
        return asked + said

    def _ask(self, example: VqaExample) -> str:
        return self.prompt.replace("{question}", example.question)

    def _sample(self, example: VqaExample, index: int) -> tuple[str, float]:
        scores = example.scores
        if len(scores) == 1:
            return next(iter(scores.items()))
        left = uniform(self.seed, int(self._epoch), index) * sum(scores.values())
        for answer, score in scores.items():
            left -= score
            if left < 0:
                return answer, score
        return example.best_answer
