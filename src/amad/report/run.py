"""One run, read from its folder: what a report shows of it, in a bounded size."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from amad.errors import DataError
from amad.records import iter_records
from amad.report.arms import COMPARISON_FILE, Arm, find_arm, runs_of_comparison
from amad.report.thinning import Thinned, averaged

RECORDS_FILE = "records.jsonl"

MOST_STEPS = 200
"""Steps between which the slider of the page moves, and points of a curve, at most."""

SCORES = {
    "vqa": ("accuracy", "%"),
    "captions": ("CIDEr", ""),
    "translation": ("BLEU", ""),
    "pretraining": ("accuracy_match", "%"),
}
"""The main score of each task, with its unit."""

ALIGNMENT_FIGURES = ("entropy", "largest", "coverage", "collapse")


class Place(NamedTuple):
    """A pair of layers, as a record of its alignment names it."""

    stack: str
    student_layer: int
    teacher_layer: int


@dataclass
class Run:
    """What one run left behind.

    Attributes:
        folder: Where it lies.
        recipe: The resolved recipe.
        with_teacher: Whether a teacher taught.
        environment: Versions, commit, platform and device.
        models: What is known of ``model``, or of ``student`` and ``teacher``: sizes, latency, score on a sample.
        pairs: Student site, teacher site and weight of each pair, as text.
        curve: Step, examples seen, and the value of the main score, in the order of steps.
        final: Every score at the end, by its name.
        steps: Values of each logged step, by the step.
        alignment: Steps, and for each the figures of every pair.
        not_finite: Logged steps at which the loss was no finite number.
        train_seconds: None if the run did not end.
        arm: What it is in a comparison, where it lies in one.
        resumed_from: The checkpoint that it went on from, and that its seconds are counted from; None for the start.
    """

    folder: Path
    recipe: dict[str, Any]
    with_teacher: bool = False
    environment: dict[str, Any] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    curve: list[tuple[int, int, float]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    alignment: Thinned = field(default_factory=lambda: Thinned(MOST_STEPS))
    not_finite: list[int] = field(default_factory=list)
    train_seconds: float | None = None
    resumed_from: str | None = None
    arm: Arm | None = None

    @property
    def ended(self) -> bool:
        """Whether it came to its end."""
        return bool(self.final) or self.train_seconds is not None

    @property
    def task(self) -> str:
        """What was learned."""
        return str(self.recipe["task"])

    @property
    def trained(self) -> dict[str, Any]:
        """What is known of the model that was trained."""
        return self.models.get("student") or self.models.get("model") or {}

    @property
    def score(self) -> float | None:
        """The main score: on all that was asked afterwards, or the run's last; in a comparison what that reports alone.

        What a run was validated on is not what its comparison reports.
        """
        if self.arm is not None:
            return self.arm.score
        afterwards = self.trained.get("score", self.final.get(SCORES[self.task][0]))
        if afterwards is not None:
            return float(afterwards)
        return self.curve[-1][2] if self.curve else None

    def losses(self) -> dict[str, Any]:
        """Steps and, per name of a logged value, its mean over the steps since the point before."""
        names = [
            name
            for name in dict.fromkeys(name for row in self.steps.values() for name in row)
            if _is_loss(name)
        ]
        rows = averaged(
            [(step, [row.get(name) for name in names]) for step, row in self.steps.items()], MOST_STEPS
        )
        return {
            "steps": [step for step, _ in rows],
            "values": {name: [row[index] for _, row in rows] for index, name in enumerate(names)},
        }


def _is_loss(name: str) -> bool:
    return name == "loss" or name.startswith(("loss_", "share_"))


def find_runs(paths: list[Path]) -> list[Path]:
    """The folders of runs that paths name: each is one, holds some, or is a comparison of ``amad compare``.

    Files beside folders are passed over: ``seed-*`` names the locks and logs of a comparison too.

    Raises:
        DataError: if a path is none of them.
    """
    folders: list[Path] = []
    for path in [path for path in paths if not path.is_file()] or paths:
        own = runs_of_comparison(path, RECORDS_FILE)
        if own is None and (path / RECORDS_FILE).is_file():
            own = [path]
        # A comparison keeps records of its own, which are those of no run.
        own = own or sorted(
            file.parent
            for file in path.glob(f"*/{RECORDS_FILE}")
            if not file.with_name(COMPARISON_FILE).exists()
        )
        if not own:
            raise DataError(
                f"{path} holds no {RECORDS_FILE}, nor does a folder in it. Name the folder of a run of amad train or "
                f"amad distill, one that holds such folders, or that of a comparison of amad compare."
            )
        folders += own
    return list(dict.fromkeys(folder.resolve() for folder in folders))


def read_run(folder: Path) -> Run:
    """Read the records of a run, ``records.jsonl``; steps after a point to which it went back are forgotten.

    Raises:
        DataError: if the records cannot be read, or do not begin with a recipe.
    """
    run: Run | None = None
    path = folder / RECORDS_FILE
    for event in iter_records(path):
        if event["event"] == "recipe":
            recipe = event.get("recipe")
            if not isinstance(recipe, dict) or recipe.get("task") not in SCORES:
                raise DataError(
                    f"{path}: the recipe has no known task. These are no records of a run; check the path."
                )
            if run is None:
                run = Run(folder, recipe)
            run.recipe, run.with_teacher = recipe, bool(event.get("with_teacher"))
            # A run that goes on has not ended, whatever it was before.
            run.models, run.final, run.train_seconds = {}, {}, None
        elif run is not None:
            try:
                _add(run, event)
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"{path}: a record of {event['event']!r} is not as amad writes it ({error!r}). Restore the file."
                ) from None
    if run is None:
        raise DataError(f"{path} names no recipe, so these are no records of a run. Check the path.")
    run.arm = find_arm(folder, SCORES[run.task][0])
    return run


def _add(run: Run, event: dict[str, Any]) -> None:
    kind = event["event"]
    values = {name: value for name, value in event.items() if name not in ("schema", "event", "time")}
    if kind == "environment":
        run.environment = values
    elif kind == "model":
        run.models.setdefault(str(values.pop("who", "model")), {}).update(values)
    elif kind == "note" and "pairs" in values:
        run.pairs = values["pairs"]
    elif kind == "note" and "resumed_from" in values:
        # A checkpoint, or the start.
        step = str(values["resumed_from"]).rpartition("-")[2]
        run.resumed_from = str(values["resumed_from"]) if step.isdigit() else None
        _forget_after(run, int(step) if step.isdigit() else 0)
    elif kind == "step" and "loss" in values:
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        run.steps[int(values["step"])] = numbers
        if isinstance(values["loss"], str):
            run.not_finite.append(int(values["step"]))
    elif kind == "alignment":
        _add_alignment(run, values)
    elif kind == "metrics":
        _add_scores(run, values)
    elif kind == "timing":
        run.train_seconds = values.get("train_seconds")


def _add_alignment(run: Run, values: dict[str, Any]) -> None:
    if not _is_finite([value for name, value in values.items() if name != "stack"]):
        # Of a run that diverged: there is nothing to draw.
        return
    if not all(isinstance(row, list) for row in values["weights"]):
        raise TypeError("weights are rows of numbers")
    place = Place(str(values["stack"]), int(values["student_layer"]), int(values["teacher_layer"]))
    run.alignment.add(int(values["step"]), place, values)


def _is_finite(value: Any) -> bool:
    """Whether there are only finite numbers in it: records have others as text."""
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, str)


def _add_scores(run: Run, values: dict[str, Any]) -> None:
    name = SCORES[run.task][0]
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    if values.get("final"):
        run.final = {key: value for key, value in numbers.items() if key != "final"}
    elif f"eval_{name}" in numbers:
        step = int(values["step"])
        # The evaluation at the end may be that of the last step once more, or that of an earlier model, the best.
        best = (run.recipe.get("training") or {}).get("load_best_model_at_end")
        if best and any(point[0] == step for point in run.curve):
            return
        run.curve = [point for point in run.curve if point[0] != step]
        run.curve.append((step, int(values["examples"]), float(numbers[f"eval_{name}"])))


def _forget_after(run: Run, step: int) -> None:
    run.curve = [point for point in run.curve if point[0] <= step]
    run.steps = {number: row for number, row in run.steps.items() if number <= step}
    run.not_finite = [number for number in run.not_finite if number <= step]
    run.alignment.forget_after(step)
