"""What ``amad compare`` shows while it waits."""

import statistics
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.markup import escape

from amad.cli.screen import console
from amad.evaluation.compare_jobs import TEACHER, Job, last_lines, remaining
from amad.evaluation.compare_plan import MAIN_FIGURES, Comparison
from amad.evaluation.compare_runs import last_step, read_outcome, read_reported
from amad.training.progress import Waiting


class ComparisonProgress:
    """The bar of all runs, and a line for each that ends."""

    def __init__(self, comparison: Comparison, folder: Path, n_parallel: int) -> None:
        self.comparison, self.folder, self.n_parallel = comparison, folder, n_parallel
        self.left = remaining(comparison, folder)
        self.total = len(self.left.ready) + len(self.left.waiting)
        self.active: Sequence[Job] = ()
        self.seconds: dict[str, list[float]] = {}
        self.failed: list[Job] = []
        self.ended_names: set[str] = set()
        self.progress = Waiting(console)
        self.task = self.progress.add_task("comparing", total=max(self.total, 1), note="")

    def ready(self) -> Sequence[Job]:
        """What can be done now."""
        self.left = remaining(self.comparison, self.folder)
        return self.left.ready

    def tick(self, active: Sequence[Job]) -> None:
        """Move the bar by the steps of the runs that are being made."""
        self.active = active
        done = len(self.ended_names) + sum(_share_done(job) for job in active)
        self.progress.update(self.task, completed=done, note="; ".join(job.name for job in active))

    def ended(self, job: Job, status: int, seconds: float) -> None:
        """Say what came out, how long it took, and how long the rest may take."""
        self.ended_names.add(job.name)
        took = timedelta(seconds=round(seconds))
        if status:
            self.failed.append(job)
            console.print(
                f"[bold red]{job.name} failed[/] after {took} with status {status}; {escape(str(job.log))} ends with:",
                highlight=False,
                soft_wrap=True,
            )
            console.print(last_lines(job.log), markup=False, highlight=False, soft_wrap=True)
            return
        self.seconds.setdefault(job.kind, []).append(seconds)
        console.print(
            f"{job.name}: {self._figure(job)}, {took}; {len(self.ended_names)} of {self.total} done{self._estimate()}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    def _figure(self, job: Job) -> str:
        task = self.comparison.recipe.task
        figure, decimals = MAIN_FIGURES[task]
        if job.run is not None and job.run.trial is not None:
            return f"{figure} {read_outcome(job.run).validated:.{decimals}f}"
        reported = read_reported(job.results, task)
        return "no figure" if reported is None else f"{figure} {reported.value:.{decimals}f}"

    def _estimate(self) -> str:
        left = remaining(self.comparison, self.folder)
        # How much of each is left: all of what was not begun, and a part of what is being made.
        parts = [(job.kind, 1.0) for job in left.ready if job.name not in self.ended_names]
        parts += [(kind, 1.0) for kind in left.waiting]
        parts += [(job.kind, 1 - _share_done(job)) for job in self.active if job.name not in self.ended_names]
        if not parts:
            return ""
        means = {kind: statistics.fmean(several) for kind, several in self.seconds.items() if kind != TEACHER}
        if not means:
            return ""
        overall = statistics.fmean(means.values())
        whole = sum(part * means.get(kind, overall) for kind, part in parts if kind != TEACHER)
        seconds = whole / min(self.n_parallel, len(parts))
        return f", about {timedelta(seconds=round(seconds))} left"


def _share_done(job: Job) -> float:
    if job.run is None:
        return 0.0
    steps = job.run.recipe.training.get("max_steps") or 0
    return min(last_step(job.run) / steps, 1.0) if steps > 0 else 0.0
