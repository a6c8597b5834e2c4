"""A bar for a wait that counts."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

from amad.training.callbacks import progress_bar


@contextlib.contextmanager
def counted(console: Console, description: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left; what it yields takes done and total."""
    with progress_bar(console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, whole: progress.update(task, completed=done, total=whole)
