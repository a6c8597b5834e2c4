"""The words: what an axis, a stack and a shape are called, everywhere.

Axes in jaxtyping signatures
    batch       samples of one forward pass
    head        attention heads, one per query head; ``kv_head`` where keys are shared inside a group
    teacher     teacher heads;  student: student heads
    query, key  positions that attend and that are attended to
    width       numbers per head in a query or a key
    token       positions of a text
    vocab       entries of a vocabulary
    feature     numbers of a hidden state

A leading ``#`` marks an axis that may be 1 and is then broadcast.

Masks say what True means: ``keep`` (the row is a real token), ``visible`` (the key may be attended).

Stacks are named ``PART.KIND``: part is ``encoder``, ``decoder``, ``vision`` or ``text``; kind is ``self`` or
``cross``. A layer is the index of a site within its stack, from 0 at the input.
"""

from typing import NamedTuple


class SiteKey(NamedTuple):
    """The name of an attention site in a recipe, a table or a record: its stack and its layer."""

    stack: str
    layer: int

    def __str__(self) -> str:
        return f"{self.stack}[{self.layer}]"


class SitePair(NamedTuple):
    """A student site and the teacher site that it learns from, with the weight of the pair in the loss."""

    student: SiteKey
    teacher: SiteKey
    weight: float = 1.0
