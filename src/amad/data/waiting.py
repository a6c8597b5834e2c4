"""How work that takes long says how far it is, without knowing who listens."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int, int], None]
"""Takes what is done and what there is in all."""

Wait = Callable[[str, int], AbstractContextManager[Advance]]
"""Takes what is being done and how much of it there is; the wait lasts as long as the block."""


@contextmanager
def unseen(description: str, total: int) -> Iterator[Advance]:
    """A wait that nobody watches."""
    yield lambda done, whole: None
