"""Items become a batch: texts to ids, images to pixels, everything padded."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amad.errors import DataError

IGNORED_LABEL = -100

FOR_THE_LOSS = ("label_weights", "kinds")
"""What a batch has for the loss alone: no inputs of a model."""


class Seq2SeqCollator:
    """Makes the inputs of an encoder-decoder from dataset items.

    An item is a mapping with ``text``; optionally ``target``; optionally ``weight`` (of the sample in the
    loss, 1 when absent); optionally ``kind`` (the number of its task, where tasks are mixed); and either ``image``
    (anything the image transform takes) or ``vis_feats`` (region, feature) with ``boxes`` (region, 4), or neither.
    Other keys are left out of the batch.

    The batch has ``input_ids`` and ``attention_mask`` (1 on real tokens); ``labels`` padded with -100 and
    ``label_weights`` (batch,) if the items have targets; ``kinds`` (batch,) if they have a kind; and
    ``pixel_values``, or ``vis_feats``, ``boxes`` and ``vis_attention_mask`` (1 on real regions), padded with zeros.
    Texts are padded on the right to the longest of the batch; those over the limit are cut before ``</s>``, which
    always stays last.

    Args:
        tokenizer: Any tokenizer that has a padding token.
        image_transform: Makes one float tensor of a list of images; needed only if items have images.
        max_input_tokens: The longest text, ``</s>`` included.
        max_target_tokens: The longest target, likewise.
        n_cached: So many tokenised texts are remembered: questions and answers repeat.
        pad_to_max: Pad texts and targets to their limits rather than to the longest of the batch, so that
            attention maps have one size in every batch. Regions are still padded to the most of the batch.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_transform: Callable[[Sequence[Any]], Tensor] | None = None,
        max_input_tokens: int = 20,
        max_target_tokens: int = 10,
        n_cached: int = 1 << 16,
        pad_to_max: bool = False,
    ) -> None:
        if tokenizer.pad_token_id is None:
            raise DataError(
                f"a batch needs a padding token and {type(tokenizer).__name__} has none. Set "
                "tokenizer.pad_token."
            )
        self.tokenizer = tokenizer
        self.image_transform = image_transform
        self.max_input_tokens = max_input_tokens
        self.max_target_tokens = max_target_tokens
        self.n_cached = n_cached
        self.pad_to_max = pad_to_max
        self._ids = lru_cache(maxsize=n_cached)(self._tokenise)

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of these items.

        Raises:
            DataError: if the list is empty, or some items have a key that others lack.
        """
        if not items:
            raise DataError(
                "a batch needs at least one item and has none. Check that the data set is not empty."
            )
        input_ids = self._pad(
            [item["text"] for item in items], self.max_input_tokens, self.tokenizer.pad_token_id
        )
        lengths = [len(self._ids(item["text"], self.max_input_tokens, False)) for item in items]
        batch: dict[str, Tensor] = {
            "input_ids": input_ids,
            "attention_mask": _mask(lengths, input_ids.shape[1]),
        }
        if self._have(items, "target"):
            batch["labels"] = self._pad(
                [item["target"] for item in items], self.max_target_tokens, IGNORED_LABEL, is_target=True
            )
            batch["label_weights"] = torch.tensor([float(item.get("weight", 1.0)) for item in items])
        if self._have(items, "kind"):
            batch["kinds"] = torch.tensor([int(item["kind"]) for item in items])
        if self._have(items, "image"):
            if self.image_transform is None:
                raise DataError("items have images but the collator has no image_transform. Give it one.")
            batch["pixel_values"] = self.image_transform([item["image"] for item in items])
        if self._have(items, "vis_feats"):
            batch |= _regions(items)
        return batch

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_ids"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._ids = lru_cache(maxsize=self.n_cached)(self._tokenise)

    def _tokenise(self, text: str, max_tokens: int, is_target: bool) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"])

    def _pad(
        self, texts: Sequence[str], max_tokens: int, fill: int, is_target: bool = False
    ) -> Int[Tensor, "batch token"]:
        rows = [self._ids(text, max_tokens, is_target) for text in texts]
        longest = max_tokens if self.pad_to_max else max(map(len, rows))
        padded = np.full((len(rows), longest), fill, dtype=np.int64)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(padded)

    @staticmethod
    def _have(items: Sequence[Mapping[str, Any]], key: str) -> bool:
        n_with = sum(item.get(key) is not None for item in items)
        if n_with not in (0, len(items)):
            raise DataError(
                f"{n_with} of {len(items)} items of a batch have {key!r}. All must have it or none; "
                "do not mix data sets with and without it in one batch."
            )
        return n_with > 0


def _mask(lengths: Sequence[int], longest: int) -> Int[Tensor, "batch token"]:
    return (torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]).long()


def _regions(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Region features and boxes, padded to the item with the most regions."""
    counts = [len(item["vis_feats"]) for item in items]
    for position, item in enumerate(items):
        if len(item.get("boxes", ())) != counts[position]:
            raise DataError(
                f"item {position} has {counts[position]} region features and {len(item.get('boxes', ()))} "
                "boxes. "
                "Every region needs one of each."
            )
    return {
        "vis_feats": _stack([item["vis_feats"] for item in items], max(counts)),
        "boxes": _stack([item["boxes"] for item in items], max(counts)),
        "vis_attention_mask": _mask(counts, max(counts)),
    }


def _stack(rows: Sequence[Any], longest: int) -> Float[Tensor, "batch region feature"]:
    arrays = [np.asarray(row, dtype=np.float32) for row in rows]
    stacked = np.zeros((len(arrays), longest, arrays[0].shape[1]), dtype=np.float32)
    for target, array in zip(stacked, arrays, strict=True):
        target[: len(array)] = array
    return torch.from_numpy(stacked)
