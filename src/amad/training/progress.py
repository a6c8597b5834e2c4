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
"""Until the first line, and at least from one line to the next."""

MOST_SECONDS_BETWEEN_LINES = 600.0

_LEAST_SECONDS = 5.0

_LINES = 20
"""From one line to the next it takes this part of the time so far, so that the log of a long run stays readable."""


class Waiting(Progress):
    """A bar of what is done, how far, how long it took and how long it will take.

    Where the console is no terminal, as in the log of a job, it draws nothing and prints the same as a line, the
    first one after :data:`SECONDS_BETWEEN_LINES`; what takes less time prints none. Then less and less often, up to
    :data:`MOST_SECONDS_BETWEEN_LINES` apart.

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
        self._began = self._said = clock()
        self._first: dict[TaskID, float] = {}

    def add_task(self, description: str, *args: Any, **kwargs: Any) -> TaskID:
        """Add a task, as ``rich.progress.Progress`` does."""
        task_id = super().add_task(description, *args, **kwargs)
        self._first[task_id] = self._tasks[task_id].completed
        return task_id

    def reset(self, task_id: TaskID, **changes: Any) -> None:
        """Begin a task anew, as ``rich.progress.Progress`` does."""
        super().reset(task_id, **changes)
        self._first[task_id] = self._tasks[task_id].completed

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
        wait = min(max((now - self._began) / _LINES, SECONDS_BETWEEN_LINES), MOST_SECONDS_BETWEEN_LINES)
        if self.console.is_terminal or now - self._said < wait:
            return
        task = self._tasks[task_id]
        elapsed = task.elapsed or 0.0
        if elapsed < _LEAST_SECONDS:
            # What has just begun may be over at once, such as an evaluation between two steps.
            return
        self._said = now
        parts = [f"{task.description.strip()}: {_number(task.completed)}"]
        if task.total is not None:
            parts[0] += f" of {_number(task.total)}"
        parts.append(f"{timedelta(seconds=int(elapsed))} so far")
        done = task.completed - self._first[task_id]
        if done > 0 and task.remaining:
            # Of all that was done, where a bar takes the last seconds: an evaluation is no step.
            parts.append(f"about {timedelta(seconds=int(elapsed * task.remaining / done))} left")
        note = task.fields.get("note")
        line = ", ".join(parts) + (f"; {note}" if note else "")
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:,.1f}"


@contextlib.contextmanager
def counted(console: Console, description: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """Show a bar with an estimate of the time left; what it yields takes done and total."""
    with Waiting(console) as progress:
        task = progress.add_task(description, total=total, note="")
        yield lambda done, whole: progress.update(task, completed=done, total=whole)
