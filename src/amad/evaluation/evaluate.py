"""Answer every question of a set, in the official form of a result file."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from amad.data.collate import Seq2SeqCollator
from amad.data.vqa import VqaDataset

_TARGETS = ("labels", "label_weights")


@torch.inference_mode()
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
    """``[{"question_id": .., "answer": ".."}]``, greedily decoded, in the order of the set.

    Args:
        model: Put in evaluation mode while it answers.
        tokenizer: Its tokenizer.
        dataset: The questions.
        collator: Makes batches.
        batch_size: Questions per batch; padding changes no answer.
        max_new_tokens: Longest answer.
        on_progress: Called with questions answered and in all.
    """
    was_training = model.training
    model.eval()
    results: list[dict[str, Any]] = []
    try:
        for start in range(0, len(dataset), batch_size):
            indices = range(start, min(start + batch_size, len(dataset)))
            batch = collator([dataset[index] for index in indices])
            inputs = {name: value.to(model.device) for name, value in batch.items() if name not in _TARGETS}
            tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False)
            answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            results += [
                {"question_id": dataset.examples[index].question_id, "answer": answer}
                for index, answer in zip(indices, answers, strict=True)
            ]
            if on_progress is not None:
                on_progress(len(results), len(dataset))
    finally:
        model.train(was_training)
    return results


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
