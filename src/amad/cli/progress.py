"""A bar for a wait that counts."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

from amad.training.progress import Waiting, counted

__all__ = ["counted", "steps_shown"]


@contextlib.contextmanager
def steps_shown(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar that starts anew with each thing that is done; what it yields takes its name, done and total."""
    with Waiting(console) as progress:
        task = progress.add_task("starting", total=1, note="")

        doing = ""

        def advance(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                progress.reset(task)
            progress.update(task, description=what, completed=done, total=total)

        yield advance
