"""The importance of a model's heads on a data set."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from amad.capture.sites import Site
from amad.losses.importance import Estimate, HeadImportance, head_importance
from amad.losses.task import TaskLoss

EXAMPLES_PER_BATCH = 64
"""Examples of one forward pass; the result does not depend on it."""


class Items(Protocol):
    """A data set: items for the collator by their number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int) -> Any:
        """The item."""
        ...


def measure_importance(
    model: PreTrainedModel,
    sites: Sequence[Site],
    collator: Callable[[Sequence[Any]], dict[str, Tensor]],
    dataset: Items,
    *,
    estimate: Estimate,
    n_examples: int,
    task: TaskLoss | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> HeadImportance:
    """The importance of every head on examples spread evenly over a set.

    Args:
        model: The model.
        sites: Its sites.
        collator: Makes batches.
        dataset: The examples.
        estimate: See :func:`~amad.losses.importance.head_importance`.
        n_examples: At most so many.
        task: The loss.
        on_progress: Called with forward passes done and in all.

    Raises:
        CaptureError: if heads of a site cannot be silenced.
    """
    batches = _Batches(model, collator, dataset, n_examples)
    return head_importance(model, sites, batches, estimate=estimate, task=task, on_progress=on_progress)


@dataclass(frozen=True)
class _Batches:
    """Batches of examples spread evenly over a set, of which one at a time is held."""

    model: PreTrainedModel
    collator: Callable[[Sequence[Any]], dict[str, Tensor]]
    dataset: Items
    at_most: int

    @property
    def n_examples(self) -> int:
        """How many."""
        return min(self.at_most, len(self.dataset))

    def __len__(self) -> int:
        return -(-self.n_examples // EXAMPLES_PER_BATCH)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        # Neighbours are often of one image.
        indices = [position * len(self.dataset) // self.n_examples for position in range(self.n_examples)]
        for start in range(0, self.n_examples, EXAMPLES_PER_BATCH):
            batch = self.collator(
                [self.dataset[index] for index in indices[start : start + EXAMPLES_PER_BATCH]]
            )
            yield {name: value.to(self.model.device) for name, value in batch.items()}
