"""Captions of images as a data set to train and to validate on."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from amad.data.augmentation import CropAndFlip
from amad.data.caption_files import CaptionExample, read_blip_captions, read_coco_captions, read_karpathy
from amad.data.images import Pixels
from amad.data.regions import Regions, visual_inputs
from amad.data.sampling import Epoch
from amad.data.vqa import GIB, ImageCache
from amad.errors import DataError

__all__ = [
    "CaptionDataset",
    "CaptionExample",
    "read_blip_captions",
    "read_coco_captions",
    "read_karpathy",
]


class CaptionDataset(Dataset[dict[str, Any]]):
    """Examples as items for ``Seq2SeqCollator``.

    An item has ``text`` (the prompt), ``target``, ``weight``, ``index``, and either ``image`` (pixels) or
    ``vis_feats`` and ``boxes`` where the example has one. While training there is one item per caption,
    images in their order and captions in theirs; otherwise one per image, whose target is its first caption.
    An image without captions has the target "" at weight 0, so it adds nothing to the loss.

    Args:
        examples: A table, or a list of what ``read_coco_captions``, ``read_karpathy`` or ``read_blip_captions`` gave.
        training: One item per caption.
        prompt: The text of every item.
        regions: Give region features instead of pixels; see ``Regions``.
        cache_bytes: Bytes of decoded images to keep in memory.
        prepare: Makes the array of an image before it is kept; see ``ImageCache``.
        augment: Gives another view of each item's image in each epoch while training; ``prepare`` is then not done.

    Raises:
        DataError: if there is no example; for training, if there is no caption.
    """

    def __init__(
        self,
        examples: Sequence[CaptionExample],
        training: bool,
        prompt: str = "caption:",
        regions: Regions | None = None,
        cache_bytes: int = GIB,
        prepare: Callable[[Image.Image], Pixels] | None = None,
        augment: CropAndFlip | None = None,
    ) -> None:
        self.examples = examples
        self.training = training
        self.prompt = prompt
        self.regions = regions
        self.augment = augment if training else None
        self.images = ImageCache(cache_bytes, None if self.augment is not None else prepare)
        self._epoch = Epoch()
        counts = [len(example.captions) if training else 1 for example in self.examples]
        # The item at which each example begins; 600,000 items take one number per image.
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if not len(self):
            raise DataError(
                f"a data set needs at least one {'caption' if training else 'image'} and has none. "
                "Check the files and the split."
            )

    def __len__(self) -> int:
        return int(self._first[-1])

    def set_epoch(self, epoch: int) -> None:
        """Take the views of images of this epoch from now on."""
        self._epoch.set(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item.

        Raises:
            DataError: if its image or its region features cannot be read.
        """
        example, caption = self._locate(index)
        item: dict[str, Any] = {
            "text": self.prompt,
            "target": example.captions[caption] if example.captions else "",
            "weight": float(bool(example.captions)),
            "index": index,
        } | visual_inputs(example, self.images.__getitem__, self.regions)
        if self.augment is not None and "image" in item:
            item["image"] = self.augment(item["image"], int(self._epoch), index)
        return item

    def example(self, index: int) -> CaptionExample:
        """The example that an item is of, with all references."""
        return self._locate(index)[0]

    def target(self, index: int) -> str:
        """The caption of an item, or "" for an image without any; needs no image."""
        example, caption = self._locate(index)
        return example.captions[caption] if example.captions else ""

    def text(self, index: int) -> str:
        """What the text encoder reads; needs no image."""
        return self.prompt

    def texts(self) -> list[str]:
        """The prompt and every caption, to train a tokenizer on; reads no image."""
        return [self.prompt, *(caption for example in self.examples for caption in example.captions)]

    def image_number(self, index: int) -> int:
        """Where the example that an item is of stands among the examples."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return int(np.searchsorted(self._first, index, side="right")) - 1

    def first_item(self, image_number: int) -> int:
        """The first item of an example; of one without captions to train on, that of the next."""
        return int(self._first[image_number])

    def _locate(self, index: int) -> tuple[CaptionExample, int]:
        position = self.image_number(index)
        return self.examples[position], index - int(self._first[position])
