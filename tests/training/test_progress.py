"""Waits: a bar on a terminal, lines elsewhere."""

import io

import pytest
from rich.console import Console

from amad.training.progress import MOST_SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_LINES, Waiting


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=terminal, width=120), file


def test_a_log_gets_a_line_with_an_estimate_from_time_to_time(clock: Clock) -> None:
    screen, file = console(terminal=False)
    with Waiting(screen, clock) as progress:
        task = progress.add_task("distilling", total=2000, note="loss 1.5")
        for step in range(1, 80):
            clock.now = float(step)
            progress.update(task, completed=10 * step)
    lines = file.getvalue().splitlines()
    assert lines == [
        "distilling: 300 of 2,000, 0:00:30 so far, about 0:02:50 left; loss 1.5",
        "distilling: 600 of 2,000, 0:01:00 so far, about 0:02:20 left; loss 1.5",
    ]


def test_estimates_take_all_that_was_done_since_the_task_began(clock: Clock) -> None:
    screen, file = console(terminal=False)
    with Waiting(screen, clock) as progress:
        # Resumed at 100; 50 steps in 50 seconds, then an evaluation of 50.
        task = progress.add_task("distilling", total=1000, completed=100, note="")
        for step in range(1, 51):
            clock.now = float(step)
            progress.update(task, completed=100 + step)
        clock.now = 100.0
        progress.update(task, completed=150)
        # Another count begins anew.
        progress.reset(task, total=9)
        clock.now = 150.0
        progress.update(task, completed=4.5)
    assert file.getvalue().splitlines()[1:] == [
        "distilling: 150 of 1,000, 0:01:40 so far, about 0:28:20 left",
        "distilling: 4.5 of 9, 0:00:50 so far, about 0:00:50 left",
    ]


def test_a_short_wait_within_a_long_one_takes_no_line_from_it(clock: Clock) -> None:
    screen, file = console(terminal=False)
    with Waiting(screen, clock) as progress:
        steps = progress.add_task("distilling", total=100, note="")
        clock.now = SECONDS_BETWEEN_LINES - 1
        batches = progress.add_task("evaluating", total=4, note="")
        clock.now = SECONDS_BETWEEN_LINES + 1
        progress.advance(batches)
        progress.update(steps, completed=50)
    assert [line.partition(":")[0] for line in file.getvalue().splitlines()] == ["distilling"]


def test_the_log_of_a_night_stays_short(clock: Clock) -> None:
    screen, file = console(terminal=False)
    hours = 12
    with Waiting(screen, clock) as progress:
        task = progress.add_task("distilling", total=3600 * hours, note="")
        for second in range(3600 * hours):
            clock.now = float(second)
            progress.advance(task)
    lines = file.getvalue().splitlines()
    assert 3600 * hours / MOST_SECONDS_BETWEEN_LINES < len(lines) < 200


def test_what_is_soon_done_prints_nothing(clock: Clock) -> None:
    screen, file = console(terminal=False)
    with Waiting(screen, clock) as progress:
        task = progress.add_task("rendering", total=5, note="")
        for _ in range(5):
            clock.now += SECONDS_BETWEEN_LINES / 6
            progress.advance(task)
    assert file.getvalue() == ""


def test_moving_on_prints_too_and_brackets_stay_as_they_are(clock: Clock) -> None:
    screen, file = console(terminal=False)
    with Waiting(screen, clock) as progress:
        task = progress.add_task("  [/red]", total=None, note="")
        clock.now = SECONDS_BETWEEN_LINES
        progress.advance(task)
    assert file.getvalue() == "[/red]: 1, 0:00:30 so far\n"


def test_a_terminal_shows_the_bar_and_no_line(clock: Clock) -> None:
    screen, file = console(terminal=True)
    with Waiting(screen, clock) as progress:
        task = progress.add_task("distilling", total=20, note="loss 1.5")
        clock.now = 10 * SECONDS_BETWEEN_LINES
        progress.update(task, completed=10)
    shown = file.getvalue()
    assert "10/20" in shown
    assert "so far" not in shown
