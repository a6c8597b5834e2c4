"""What a split holds, counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from amad.data.problems import Pictured


class Surveyed(Pictured, Protocol):
    """An example with what a model should say of it."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Answers, captions or translations."""


@dataclass(frozen=True)
class SplitCounts:
    """What a split holds.

    Attributes:
        items: Questions, captioned images or sentences.
        images: Distinct images.
        fewest: Answers, captions or translations of the item that has the fewest.
        most: Those of the item that has the most.
        unanswered: Items that have none.
    """

    items: int
    images: int
    fewest: int
    most: int
    unanswered: int


def count_split(examples: Sequence[Surveyed]) -> SplitCounts:
    """The counts of a split; all zero of one without examples."""
    counts = [len(example.targets) for example in examples]
    images = {example.image or example.stem for example in examples}
    return SplitCounts(
        items=len(counts),
        images=len(images - {""}),
        fewest=min(counts, default=0),
        most=max(counts, default=0),
        unanswered=counts.count(0),
    )
