"""The runs of a comparison that are still to be made: each a few ordinary commands, in processes of their own."""

import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from amad.data.paths import write_whole
from amad.evaluation.compare_plan import Arm, Comparison, PlannedRun
from amad.evaluation.compare_runs import METRICS_FILE, read_outcome, run_state
from amad.recipe import Recipe
from amad.records import claimed, is_written

RECIPE_FILE = "recipe.yaml"
TEACHER_FOLDER = "teacher"
VALIDATED_FOLDER = "teacher-on-validation"
"""The teacher's figures on the data that is reported, and on what curves are drawn of where that differs."""

TEACHER = "teacher"
"""The kind of the teacher's jobs."""

_TICK_SECONDS = 1.0
_LAST_LINES = 8


@dataclass(frozen=True)
class Job:
    """What is left of one run, or of one evaluation of the teacher.

    Attributes:
        name: For people.
        kind: Jobs of one kind take about as long.
        commands: Arguments of ``amad``, one after the other.
        log: Where they write what they say.
        results: Folder of what is evaluated.
        run: The run; None for the teacher.
        report: What the run is reported on.
    """

    name: str
    kind: str
    commands: tuple[tuple[str, ...], ...]
    log: Path
    results: Path
    run: PlannedRun | None = None
    report: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The job as a line for a shell."""
        return " && ".join(shlex.join(("amad", *command)) for command in self.commands)

    @property
    def claim(self) -> Path:
        """Held by the comparison that makes the job, so that another one on the same folder leaves it alone."""
        return self.log.with_suffix(".lock")

    @property
    def is_claimed(self) -> bool:
        """Whether a comparison, here or in another process, is making it."""
        return is_written(self.claim)

    def left(self) -> tuple[tuple[str, ...], ...]:
        """The commands that are left of it now."""
        return self.commands if self.run is None else _commands(self.run, run_state(self.run), self.report)


@dataclass(frozen=True)
class Choice:
    """What an arm's search found.

    Attributes:
        setting: The setting with the highest figure; the first of several.
        trials: Every trial with its figure on the validation set; None while it is not finished.
    """

    setting: tuple[str, ...] | None
    trials: tuple[tuple[PlannedRun, float | None], ...]


@dataclass(frozen=True)
class Remaining:
    """What is left of a comparison.

    Attributes:
        ready: Jobs that nothing stands in the way of.
        waiting: Kinds of the runs that wait for the trials of their arm.
        running: Names of runs that some process is at.
    """

    ready: tuple[Job, ...]
    waiting: tuple[str, ...]
    running: tuple[str, ...]


def choose(comparison: Comparison, folder: Path, arm: Arm) -> Choice:
    """The setting of an arm, as far as its trials are finished."""
    trials = comparison.trials(folder, arm)
    if not trials:
        return Choice(comparison.settings(arm)[0], ())
    found = [
        (trial, read_outcome(trial).validated if run_state(trial) == "finished" else None) for trial in trials
    ]
    figures = [figure for _, figure in found if figure is not None]
    if len(figures) < len(found):
        return Choice(None, tuple(found))
    # A run that diverged may have a figure that is no number; it is never the best.
    best = max(
        range(len(figures)), key=lambda number: -math.inf if math.isnan(figures[number]) else figures[number]
    )
    return Choice(trials[best].setting, tuple(found))


def remaining(comparison: Comparison, folder: Path) -> Remaining:
    """What is left, in the order in which it is best done; the recipes of what is ready are written.

    All arms have a seed before the next one begins.
    """
    jobs = [job for job in _teacher_jobs(comparison, folder) if not job.is_claimed]
    runs: list[list[PlannedRun]] = []
    waiting: list[str] = []
    running: list[str] = []
    trials: list[PlannedRun] = []
    for arm in comparison.arms:
        choice = choose(comparison, folder, arm)
        trials += [trial for trial, figure in choice.trials if figure is None]
        if choice.setting is None:
            waiting += [arm.label] * comparison.n_seeds
        else:
            runs.append(comparison.runs(folder, arm, choice.setting))
    for run in [*trials, *(run for seed in zip(*runs, strict=True) for run in seed)]:
        state = run_state(run)
        if state == "running":
            running.append(run.name)
            continue
        job = _job(run, state, comparison.report)
        if job.commands and job.is_claimed:
            running.append(run.name)
        elif job.commands:
            _write_recipe(run.recipe_file, run.recipe)
            jobs.append(job)
    return Remaining(tuple(jobs), tuple(waiting), tuple(running))


def run_jobs(
    ready: Callable[[], Sequence[Job]],
    n_parallel: int,
    *,
    on_end: Callable[[Job, int, float], None],
    on_tick: Callable[[Sequence[Job]], None],
) -> None:
    """Make jobs, several at a time, until none is ready that was not tried.

    Where there are several GPUs, each job sees one of them.

    Args:
        ready: Says what can be done now; asked again whenever a job ends.
        n_parallel: Jobs at a time.
        on_end: Called with a job, its exit status and its seconds; not for a job that another comparison took first.
        on_tick: Called every second with the jobs that are being made.

    Raises:
        KeyboardInterrupt: on an interruption or SIGTERM, after all processes were ended.
    """
    tried: set[str] = set()
    active: dict[Future[tuple[int, float] | None], Job] = {}
    processes = _Processes(n_parallel)
    with _terminated_as_interrupted(), ThreadPoolExecutor(n_parallel) as pool:
        try:
            while True:
                for job in ready():
                    if len(active) < n_parallel and job.name not in tried:
                        tried.add(job.name)
                        active[pool.submit(processes.make, job)] = job
                if not active:
                    return
                done: set[Future[tuple[int, float] | None]] = set()
                while not done:
                    on_tick(list(active.values()))
                    done, _ = wait(active, timeout=_TICK_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    job, ended = active.pop(future), future.result()
                    if ended is None:
                        # If the other one is interrupted, it is ready again.
                        tried.discard(job.name)
                    else:
                        on_end(job, *ended)
        except BaseException:
            processes.end()
            raise


def last_lines(log: Path) -> str:
    """The last lines that a job's commands said."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([line for line in lines if line.strip()][-_LAST_LINES:])


def visible_devices() -> list[str]:
    """The NVIDIA GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    n_visible = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [str(number) for number in range(n_visible)]
    names = [name.strip() for name in named.split(",")]
    # Of the parts of a GPU that are named, torch counts the first alone.
    parts = [name for name in names if name.startswith("MIG-")]
    return parts or names[:n_visible]


class _Devices:
    """Which job is on which device: the one that has the fewest, the first of several."""

    def __init__(self, names: Sequence[str]) -> None:
        self.lock = threading.Lock()
        self.jobs = dict.fromkeys(names, 0)

    @contextlib.contextmanager
    def one(self) -> Iterator[dict[str, str]]:
        """What a process has to find in its environment; nothing where there is no choice."""
        if len(self.jobs) < 2:
            yield {}
            return
        with self.lock:
            name = min(self.jobs, key=lambda name: self.jobs[name])
            self.jobs[name] += 1
        try:
            yield {"CUDA_VISIBLE_DEVICES": name}
        finally:
            with self.lock:
                self.jobs[name] -= 1


class _Processes:
    """The processes of the jobs that are being made."""

    def __init__(self, n_parallel: int) -> None:
        self.environment = dict(os.environ)
        self.devices = _Devices(visible_devices())
        if n_parallel > 1:
            # Otherwise each takes all cores.
            self.environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_parallel)))
        self.lock = threading.Lock()
        self.active: set[subprocess.Popen[bytes]] = set()
        self.ended = False

    def make(self, job: Job) -> tuple[int, float] | None:
        """Run a job's commands until one fails; exit status and seconds, or None if another comparison is at it."""
        started, status = time.monotonic(), 0
        job.log.parent.mkdir(parents=True, exist_ok=True)
        # Longer than it takes another one to see whether it is held.
        with claimed(job.claim, _TICK_SECONDS) as mine:
            if not mine:
                return None
            with self.devices.one() as device:
                for command in job.left():
                    status = self._run(command, job.log, device)
                    if status:
                        break
        return status, time.monotonic() - started

    def _run(self, command: Sequence[str], log: Path, device: Mapping[str, str]) -> int:
        with open(log, "ab") as file:
            file.write(f"$ {shlex.join(('amad', *command))}\n".encode())
            file.flush()
            with self.lock:
                if self.ended:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [sys.executable, "-m", "amad", *command],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**self.environment, **device},
                )
                self.active.add(process)
            try:
                return process.wait()
            finally:
                with self.lock:
                    self.active.discard(process)

    def end(self) -> None:
        """End all of them; none is begun afterwards."""
        with self.lock:
            self.ended = True
            for process in self.active:
                process.terminate()


def teacher_folder(comparison: Comparison, folder: Path, name: str, seed: int) -> Path:
    """Where the figures of a seed's teacher are: one folder, or one for each seed that has its own."""
    return folder / name / f"seed-{seed}" if comparison.has_teachers else folder / name


def _teacher_jobs(comparison: Comparison, folder: Path) -> list[Job]:
    recipe_file = folder / RECIPE_FILE
    _write_recipe(recipe_file, comparison.recipe)
    wanted = {TEACHER_FOLDER: comparison.report}
    if comparison.draws_other_data:
        wanted[VALIDATED_FOLDER] = ("--as-validated",)
    # VL-T5's result file of translations is lines of text.
    suffix = ".txt" if comparison.recipe.task == "translation" else ".json"
    jobs = []
    for seed in range(comparison.n_seeds if comparison.has_teachers else 1):
        for name, arguments in wanted.items():
            found = teacher_folder(comparison, folder, name, seed)
            if not (found / METRICS_FILE).is_file():
                results = str(found / f"results{suffix}")
                models = ("--model", comparison.teacher(seed), "--results", results)
                command = ("evaluate", str(recipe_file), *arguments, *models)
                # No label of an arm has a space.
                called = name.replace("-", " ")
                called = f"the {called}, seed {seed}" if comparison.has_teachers else called
                log = found.with_name(f"{found.name}.log")
                jobs.append(Job(called, TEACHER, (command,), log, found))
    return jobs


def _job(run: PlannedRun, state: str, report: tuple[str, ...]) -> Job:
    log = run.recipe_file.with_suffix(".log")
    return Job(run.name, run.arm.label, _commands(run, state, report), log, run.folder, run, report)


def _commands(run: PlannedRun, state: str, report: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    commands: list[tuple[str, ...]] = []
    if state != "finished":
        resume = ("--resume",) if state == "interrupted" else ()
        commands.append(("distill" if run.distils else "train", str(run.recipe_file), *resume))
    if run.trial is None and not (run.folder / METRICS_FILE).is_file():
        commands.append(("evaluate", str(run.recipe_file), *report))
    return tuple(commands)


def _write_recipe(path: Path, recipe: Recipe) -> None:
    text = recipe.dump()
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM do what an interruption does, so that no process is left behind."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
