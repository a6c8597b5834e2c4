"""Pairs of image and caption, as BLIP is pre-trained on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from amad.data.blip_collate import BlipCollator, clean_caption
from amad.data.captions import CaptionDataset
from amad.data.wordpiece import ENCODE
from amad.errors import DataError


class CaptionPairs(Dataset[dict[str, Any]]):
    """Captions with their images as items for ``PairCollator``.

    An item has ``text`` and ``target``, both the caption, ``image_number``, equal for captions of one image, ``index``
    and ``image``. There is one item per caption to train on, and one per image, with its first caption, to validate on.

    Args:
        captions: The captions; each must have an image.

    Raises:
        DataError: if an image has no caption, or there are fewer than two images.
    """

    def __init__(self, captions: CaptionDataset) -> None:
        self.captions = captions
        examples = captions.examples
        empty = next((one.image_name for one in examples if not (captions.training or one.captions)), None)
        if empty is not None:
            raise DataError(f"image {empty} has no caption to make a pair with. Leave it out, or caption it.")
        if len(examples) < 2:
            raise DataError(
                f"pairs are contrasted with those of other images, and there is {len(examples)}. Give more images."
            )

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item.

        Raises:
            DataError: if its image cannot be read.
        """
        caption = self.captions.target(index)
        number = self.captions.image_number(index)
        return self.captions[index] | {"text": caption, "target": caption, "image_number": number}

    def set_epoch(self, epoch: int) -> None:
        """Show the views of images of this epoch from now on."""
        self.captions.set_epoch(epoch)

    def texts(self) -> list[str]:
        """Every caption, to train a tokenizer on; reads no image."""
        return self.captions.texts()


class PairCollator(BlipCollator):
    """Makes the inputs of :class:`amad.models.blip_pretraining.BlipForPretraining` from items of ``CaptionPairs``.

    ``input_ids`` are ``[CLS]``, the words of the cleaned caption, ``[SEP]``; ``pair_input_ids`` the same with
    ``[ENC]`` in the place of ``[CLS]``; ``labels`` the words and ``[SEP]``; ``image_numbers`` those of the items.

    Args:
        tokenizer: BERT's; what it lacks of BLIP's tokens is added to it.
        image_transform: Makes one float tensor of a list of images.
        max_input_tokens: The longest caption that is read, with the tokens above.
        max_target_tokens: The longest that is said, ``[SEP]`` included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_transform: Callable[[Sequence[Any]], Tensor] | None = None,
        max_input_tokens: int = 30,
        max_target_tokens: int = 30,
    ) -> None:
        super().__init__(tokenizer, "questions", image_transform, max_input_tokens, max_target_tokens)
        self._encode = int(tokenizer.convert_tokens_to_ids(ENCODE))
        self._start = int(tokenizer.cls_token_id)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of these items.

        Raises:
            DataError: as ``Seq2SeqCollator``.
        """
        batch = super().__call__(items)
        batch["pair_input_ids"] = batch["input_ids"].clone()
        batch["pair_input_ids"][:, 0] = self._encode
        batch["image_numbers"] = torch.tensor([int(item["image_number"]) for item in items])
        return batch

    def _tokenise(self, text: str, max_tokens: int, is_target: bool) -> tuple[int, ...]:
        return super()._tokenise(clean_caption(text), max_tokens, is_target)
