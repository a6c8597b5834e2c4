"""What a model says of every item of a set."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.collate import FOR_THE_LOSS, Seq2SeqCollator
from amad.data.vqa import VqaDataset
from amad.errors import DataError
from amad.models.plain_decoding import plain_decoding

_TARGETS = ("labels", *FOR_THE_LOSS)
_SIGHT = ("pixel_values", "vis_feats", "boxes")


class Items(Sized, Protocol):
    """A data set: items for the collator by their number."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The item."""
        ...


@dataclass(frozen=True)
class Decoding:
    """How texts are decoded: the most likely one, never sampled.

    Attributes:
        max_length: Most decoder tokens, the start token among them, as ``generate`` counts them.
        num_beams: Beams; 1 is greedy.
        min_length: Fewest decoder tokens, likewise.
    """

    max_length: int
    num_beams: int = 1
    min_length: int = 0


@dataclass(frozen=True)
class Candidates:
    """Answers to choose from, for a BLIP, which then generates none.

    Attributes:
        texts: The answers.
        labels: Their tokens, as the collator makes labels.
        first: How many, of the most likely first token, are compared whole.
    """

    texts: Sequence[str]
    labels: Int[Tensor, "candidate token"]
    first: int = 128


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Items,
    collator: Seq2SeqCollator,
    decoding: Decoding,
    *,
    batch_size: int = 100,
    candidates: Candidates | None = None,
    blank_images: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """One text per item, without special tokens, in the order of the set.

    Args:
        model: Put in evaluation mode while it generates.
        tokenizer: Its tokenizer.
        dataset: The items.
        collator: Makes batches.
        decoding: How.
        batch_size: Items per batch; padding changes no text.
        candidates: Say the most likely of these instead.
        blank_images: Show the model no image: see :func:`blanked`.
        on_progress: Called with items done and in all.

    Raises:
        DataError: if an item cannot be read, or there is no image to blank.
    """
    batches = in_batches(range(len(dataset)), batch_size)
    texts: list[str] = []
    for said in generate_batches(
        model,
        tokenizer,
        dataset,
        collator,
        decoding,
        batches,
        candidates=candidates,
        blank_images=blank_images,
    ):
        texts += said
        if on_progress is not None:
            on_progress(len(texts), len(dataset))
    return texts


def generate_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Items,
    collator: Seq2SeqCollator,
    decoding: Decoding,
    batches: Sequence[list[int]],
    *,
    candidates: Candidates | None = None,
    blank_images: bool = False,
    workers: int = 0,
) -> Iterator[list[str]]:
    """The texts of one batch after another; see :func:`generate_texts`.

    Args:
        model: Put in evaluation mode until the last batch.
        tokenizer: Its tokenizer.
        dataset: The items.
        collator: Makes batches.
        decoding: How.
        batches: Numbers of the items of each batch.
        candidates: Say the most likely of these instead.
        blank_images: Show the model no image.
        workers: Processes that read items ahead; 0: none, each batch is read when it is needed.
    """

    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return blanked(collator(items)) if blank_images else collator(items)

    loader = DataLoader(
        cast(Dataset[Any], dataset), batch_sampler=batches, collate_fn=collate, num_workers=workers
    )
    was_training = model.training
    model.eval()
    try:
        for batch in loader:
            yield _say(model, tokenizer, batch, decoding, candidates)
    finally:
        model.train(was_training)


@torch.inference_mode()
def _say(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Mapping[str, Tensor],
    decoding: Decoding,
    candidates: Candidates | None,
) -> list[str]:
    inputs = {name: value.to(model.device) for name, value in batch.items() if name not in _TARGETS}
    if candidates is not None:
        chosen = model.rank(**inputs, candidates=candidates.labels.to(model.device), n_first=candidates.first)
        return [candidates.texts[row] for row in chosen.tolist()]
    with plain_decoding(model):
        tokens = model.generate(
            **inputs,
            max_length=decoding.max_length,
            num_beams=decoding.num_beams,
            min_length=decoding.min_length,
            do_sample=False,
        )
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=True))


def in_batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    """These numbers in batches, the last of which may be smaller."""
    return [list(numbers[start : start + size]) for start in range(0, len(numbers), size)]


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
    """``[{"question_id": .., "answer": ".."}]``, the official form, of ``generate_texts`` on questions, greedily.

    For models whose decoder reads a start token and then nothing but its own: they answer in ``max_new_tokens``.
    """
    answers = generate_texts(
        model,
        tokenizer,
        dataset,
        collator,
        Decoding(max_length=max_new_tokens + 1),
        batch_size=batch_size,
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
