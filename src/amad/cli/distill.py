"""``amad train`` and ``amad distill``."""

from pathlib import Path
from typing import Annotated

import typer

from amad.cli.screen import FIGURE_TITLES, console, print_json, print_table, quiet_libraries, user_errors

RecipeArgument = Annotated[Path, typer.Argument(help="A YAML file, as in recipes/.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="KEY=VALUE, with dots: training.max_steps=500", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sites, pairs, steps and memory, and stop.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the last checkpoint of this output folder, or from the start if the run that is there was "
        "interrupted before its first.",
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]

PAIR_COLUMNS = ("student", "teacher", "weight")


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train on ground truth alone: a teacher, or the student of a distillation recipe without its teacher.

    On several devices: torchrun --nproc-per-node 2 -m amad train RECIPE, or accelerate launch -m amad train RECIPE;
    each process takes training.per_device_train_batch_size examples of a step.
    """
    _run(recipe, overrides, dry_run, resume, as_json, with_teacher=False)


def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a student on ground truth and on its teacher's predictions and attention.

    On several devices: torchrun --nproc-per-node 2 -m amad distill RECIPE, or accelerate launch -m amad distill RECIPE;
    each process takes training.per_device_train_batch_size examples of a step.
    """
    _run(recipe, overrides, dry_run, resume, as_json, with_teacher=True)


def _run(
    path: Path, overrides: list[str] | None, dry_run: bool, resume: bool, as_json: bool, with_teacher: bool
) -> None:
    quiet_libraries()
    from amad.cli.kept import record_kept
    from amad.errors import AmadError
    from amad.recipe import load_recipe
    from amad.training.plan import STACK_COLUMNS
    from amad.training.run import TrainingRun

    with user_errors():
        run = TrainingRun(load_recipe(path, overrides or []), with_teacher=with_teacher, console=console)
        if dry_run:
            plan = run.plan()
            run.end()
            if not run.is_first:
                return
            if as_json:
                plan["sites"] = [dict(zip(STACK_COLUMNS, row, strict=True)) for row in plan["sites"]]
                plan["pairs"] = [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in plan["pairs"]]
                print_json(plan)
                return
            print_table("Attention sites", STACK_COLUMNS, plan["sites"])
            if plan["pairs"]:
                print_table("Who learns from whom", PAIR_COLUMNS, plan["pairs"])
            print_table("Plan", ("what", "value"), list(plan["summary"].items()))
            return
        try:
            result = run.train(resume=resume)
        except KeyboardInterrupt:
            if run.is_first:
                console.print(_after_interruption(run.output))
            raise typer.Exit(130) from None
        run.end()
        if not run.is_first:
            return
        try:
            record_kept(run.parts, run.parts.model, run.output)
        except AmadError as error:
            # The model is there and whole.
            console.print(f"the run has no examples for amad report: {error}", markup=False, soft_wrap=True)
        if as_json:
            print_json(result)
            return
        # The curve is for programs, and in the records.
        shown = [(FIGURE_TITLES.get(name, name), value) for name, value in result.items() if name != "curve"]
        print_table("Result", ("what", "value"), shown)


def _after_interruption(output: Path) -> str:
    from amad.training.resumption import RECIPE_FILE, last_checkpoint

    if not (output / RECIPE_FILE).is_file():
        return "interrupted before the run began; nothing was written. The same command starts it."
    checkpoint = last_checkpoint(output)
    if checkpoint is not None:
        return f"interrupted; {checkpoint} is whole. Go on from it with the same command and --resume."
    return (
        f"interrupted before a first checkpoint; {output} holds the records so far. The same command with --resume "
        "begins again. To be able to go on next time, set training.save_strategy=steps and training.save_steps."
    )
