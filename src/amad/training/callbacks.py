"""What a run shows while it goes and what it writes down."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import TaskID
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from amad.axes import SitePair
from amad.losses.figures import AlignmentFigures
from amad.records import RunRecords
from amad.training.progress import Waiting


class ShownProgress(TrainerCallback):  # type: ignore[misc]
    """A progress bar with an estimate of the time left, the last loss and the last score.

    Args:
        console: Where to draw; standard error keeps standard output for results.
        description: What is being trained.
        figure: Name of the score.
    """

    def __init__(self, console: Console, description: str, figure: str = "accuracy") -> None:
        self.progress = Waiting(console)
        self.description = description
        self.figure = figure
        self.steps: TaskID | None = None
        self.batches: TaskID | None = None
        self.shown: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self.progress.start()
            self.steps = self.progress.add_task(
                self.description, total=state.max_steps, completed=state.global_step, note=""
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        if self.steps is not None:
            self.progress.update(self.steps, completed=state.global_step)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Move the bar of the evaluation."""
        if not state.is_world_process_zero or eval_dataloader is None:
            return
        if self.batches is None:
            if self.steps is None:
                self.progress.start()
            self.batches = self.progress.add_task("  evaluating", total=len(eval_dataloader), note="")
        self.progress.advance(self.batches)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar of the evaluation."""
        if self.batches is not None:
            self.progress.remove_task(self.batches)
            self.batches = None
            if self.steps is None:
                self.progress.stop()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last loss and score beside the bar."""
        for name, label in (("loss", "loss"), (f"eval_{self.figure}", self.figure)):
            if logs and name in logs:
                self.shown[label] = f"{label} {logs[name]:.4g}"
        if self.steps is not None:
            self.progress.update(self.steps, note=" ".join(self.shown.values()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the finished bar on the screen."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also where an error ended the training."""
        self.progress.stop()
        # What a terminal shows stays; a bar that is opened later shows itself alone.
        for task in self.progress.task_ids:
            self.progress.remove_task(task)
        self.steps = self.batches = None


class AnnouncedEpoch(TrainerCallback):  # type: ignore[misc]
    """Tell the training set which epoch begins, so that it samples the answers of that epoch.

    The data loader tells it as well, but not in an epoch that is resumed in its middle (accelerate 1.15).

    Args:
        set_epoch: Called with the number of the epoch, from 0.
    """

    def __init__(self, set_epoch: Callable[[int], None]) -> None:
        self.set_epoch = set_epoch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say it before the first batch is read."""
        self.set_epoch(int(state.epoch or 0))


class KeptRecords(TrainerCallback):  # type: ignore[misc]
    """Write what is logged, and who teaches whom, as events of the run's records.

    Args:
        records: The run's records.
        alignment: Gives the figures of each pair at the last diagnosed step.
        examples_seen: Says how many examples were seen after so many steps.
    """

    def __init__(
        self,
        records: RunRecords,
        alignment: Callable[[], dict[SitePair, AlignmentFigures]],
        examples_seen: Callable[[int], int],
    ) -> None:
        self.records = records
        self.alignment = alignment
        self.examples_seen = examples_seen

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """One ``step`` or ``metrics`` event, and one ``alignment`` event per pair."""
        if not state.is_world_process_zero or not logs:
            return
        examples = self.examples_seen(state.global_step)
        values = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
        evaluated = any(name.startswith("eval_") for name in logs)
        self.records.write(
            "metrics" if evaluated else "step", step=state.global_step, examples=examples, **values
        )
        if "loss" not in logs:
            return
        for pair, figures in self.alignment().items():
            self.records.write(
                "alignment",
                step=state.global_step,
                stack=pair.student.stack,
                student_layer=pair.student.layer,
                teacher_layer=pair.teacher.layer,
                entropy=figures.entropy,
                largest=figures.largest,
                coverage=figures.coverage,
                collapse=figures.collapse,
                weights=[[round(weight, 6) for weight in row] for row in figures.weights],
                coverage_by_head=[round(nats, 6) for nats in figures.coverage_by_head],
                alike=[[round(cosine, 4) for cosine in row] for row in figures.alike],
            )
