"""What a model says of every item of a set."""

from collections.abc import Callable, Mapping, Sized
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.collate import Seq2SeqCollator
from amad.data.vqa import VqaDataset
from amad.errors import DataError

_TARGETS = ("labels", "label_weights")
_SIGHT = ("pixel_values", "vis_feats", "boxes")


class Items(Sized, Protocol):
    """A data set: items for the collator by their number."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item."""
        ...


@torch.inference_mode()
def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Items,
    collator: Seq2SeqCollator,
    *,
    batch_size: int = 100,
    max_new_tokens: int = 10,
    blank_images: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """One text per item, greedily decoded, without special tokens, in the order of the set.

    Args:
        model: Put in evaluation mode while it generates.
        tokenizer: Its tokenizer.
        dataset: The items.
        collator: Makes batches.
        batch_size: Items per batch; padding changes no text.
        max_new_tokens: Longest text.
        blank_images: Show the model no image: see :func:`blanked`.
        on_progress: Called with items done and in all.

    Raises:
        DataError: if an item cannot be read, or there is no image to blank.
    """
    was_training = model.training
    model.eval()
    texts: list[str] = []
    try:
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            batch = collator([dataset[index] for index in indices])
            if blank_images:
                batch = blanked(batch)
            inputs = {name: value.to(model.device) for name, value in batch.items() if name not in _TARGETS}
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False)
            texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
            if on_progress is not None:
                on_progress(len(texts), len(dataset))
    finally:
        model.train(was_training)
    return texts


def blanked(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with nothing to see: ``pixel_values``, ``vis_feats`` and ``boxes`` are zero, masks stay.

    Pixels are zero after normalisation, so the image is one of the mean colour of the checkpoint's image processor
    (``image_mean``: mid-grey where that is 0.5); black where the processor does not normalise. The model reads as
    many visual tokens as before, with their positions where it embeds those itself.

    Raises:
        DataError: if the batch has no image.
    """
    if not any(name in batch for name in _SIGHT):
        raise DataError("there are no images to blank: the items of this set have text alone.")
    return {name: torch.zeros_like(value) if name in _SIGHT else value for name, value in batch.items()}


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: VqaDataset,
    collator: Seq2SeqCollator,
    *,
    batch_size: int = 100,
    max_new_tokens: int = 10,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """``[{"question_id": .., "answer": ".."}]``, the official form, of ``generate_texts`` on questions."""
    answers = generate_texts(
        model,
        tokenizer,
        dataset,
        collator,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        on_progress=on_progress,
    )
    return [
        {"question_id": example.question_id, "answer": answer}
        for example, answer in zip(dataset.examples, answers, strict=True)
    ]


def accuracy(dataset: VqaDataset, results: list[dict[str, Any]]) -> float | None:
    """VQA accuracy of these results in percent; None if the set has no answers.

    Official where ten answers are known, else the soft score that the set gives the answer.
    """
    if not any(example.scores for example in dataset.examples):
        return None
    scores = [
        example.accuracy(result["answer"]) for example, result in zip(dataset.examples, results, strict=True)
    ]
    return 100 * sum(scores) / len(scores)
