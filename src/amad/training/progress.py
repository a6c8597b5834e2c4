"""The one look of every wait: a bar where somebody watches, a line from time to time where the output is kept."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30.0
"""A log of a night's run stays readable, and who follows it sees within half a minute that it lives."""


class Waiting(Progress):
    """A bar of what is done, how far, how long it took and how long it will take.

    Where the console is no terminal, as in the log of a job, it draws nothing and prints the same as a line, the
    first one after :data:`SECONDS_BETWEEN_LINES`; what takes less time prints none.

    Args:
        console: Where to draw.
        clock: Seconds, from any start.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(
            TextColumn("{task.description}", justify="left"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            get_time=clock,
            disable=not console.is_terminal,
        )
        self._said = clock()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Move a task, as ``rich.progress.Progress`` does."""
        super().update(task_id, **changes)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move a task on, as ``rich.progress.Progress`` does."""
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        now = self.get_time()
        if self.console.is_terminal or now - self._said < SECONDS_BETWEEN_LINES:
            return
        self._said = now
        task = self._tasks[task_id]
        parts = [f"{task.description.strip()}: {int(task.completed):,}"]
        if task.total is not None:
            parts[0] += f" of {int(task.total):,}"
        if task.elapsed is not None:
            parts.append(f"{timedelta(seconds=int(task.elapsed))} so far")
        if task.time_remaining:
            parts.append(f"about {timedelta(seconds=int(task.time_remaining))} left")
        note = task.fields.get("note")
        line = ", ".join(parts) + (f"; {note}" if note else "")
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def counted(console: Console, description: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left; what it yields takes done and total."""
    with Waiting(console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, whole: progress.update(task, completed=done, total=whole)
