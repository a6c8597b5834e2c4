"""What the trainer reads of data sets, batches and outputs, in the one form that the objective takes."""

import itertools
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel

from amad.axes import SiteKey
from amad.capture.record import AttentionRecord
from amad.errors import RecipeError
from amad.losses.objective import Captured, Objective, Targets
from amad.models.labels import has_encoder, predicts_next


def first_examples(dataset: Any, n: int) -> list[Any]:
    """The first examples, at most n."""
    if dataset is None:
        return []
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return list(itertools.islice(iter(dataset), n))
    return [dataset[index] for index in range(min(n, len(dataset)))]


def with_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the last token of its last sample hidden in each mask that hides none; itself if none can."""
    changed = {}
    for name, mask in batch.items():
        is_mask = name.endswith("attention_mask") and isinstance(mask, Tensor) and mask.ndim == 2
        if is_mask and mask.shape[1] > 1 and bool(mask.bool().all()):
            changed[name] = mask.clone()
            changed[name][-1, -1] = 0
    return batch | changed if changed else batch


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """The labels of a batch over (batch, token); a class per sample is one token.

    Raises:
        RecipeError: if there are none, or they are anything but integers per token or per sample.
    """
    labels = batch.get("labels")
    if labels is None:
        raise RecipeError(f"a batch has no 'labels' but {sorted(batch)}. The collator must give them.")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim not in (1, 2):
        form = (
            f"{labels.dtype} of {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else type(labels).__name__
        )
        raise RecipeError(
            f"labels must be integers over (batch, token), or (batch,) for one class per sample, and are {form}. "
            f"Regression, several classes per sample, boxes and pixels are not distilled."
        )
    return labels[:, None] if labels.ndim == 1 else labels


def targets_of(batch: Mapping[str, Any]) -> Targets:
    """The ground truth of a batch: ``labels``; ``label_weights``, ``kinds`` and ``answer_counts`` where it has them.

    Raises:
        RecipeError: as :func:`labels_of`.
    """
    return Targets(
        labels_of(batch), batch.get("label_weights"), batch.get("kinds"), batch.get("answer_counts")
    )


def captured_of(output: Mapping[str, Any], records: Mapping[SiteKey, AttentionRecord]) -> Captured:
    """What the objective reads of one forward pass.

    Args:
        output: Of the model: ``logits``, and ``sample_losses`` and ``sample_figures`` where it computes losses itself.
        records: What its attention sites did.
    """
    return Captured(
        logits_of(output), records, output.get("sample_losses") or {}, output.get("sample_figures") or {}
    )


def logits_of(output: Mapping[str, Any]) -> Tensor | None:
    """Logits (batch, token, vocabulary); scores of a sample's classes are those of one token."""
    logits: Tensor | None = output.get("logits")
    return logits[:, None] if logits is not None and logits.ndim == 2 else logits


def check_shift(student: PreTrainedModel, objective: Objective) -> None:
    """See that terms shift labels as the student does: a decoder alone predicts the next one at each position.

    Raises:
        RecipeError: if a term does otherwise, which would teach to copy the input, or to skip a token.
    """
    is_next = predicts_next(student)
    for name, term in objective.terms.items():
        shifts = getattr(term, "shift_labels", None)
        if (shifts is False and is_next) or (shifts is True and has_encoder(student)):
            raise RecipeError(
                f"term {name!r} has shift_labels={shifts}, but position t of {type(student).__name__} predicts label "
                f"{'t + 1' if is_next else 't'}. Make it with shift_labels={not shifts}."
            )
