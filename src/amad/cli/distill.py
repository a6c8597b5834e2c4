"""``amad train`` and ``amad distill``."""

from pathlib import Path
from typing import Annotated

import typer

from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors

RecipeArgument = Annotated[Path, typer.Argument(help="A YAML file, as in recipes/.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="KEY=VALUE, with dots: training.max_steps=500", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sites, pairs, steps and memory, and stop.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the last checkpoint of this output folder.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]


def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train on ground truth alone: a teacher, or the student of a distillation recipe without its teacher."""
    _run(recipe, overrides, dry_run, resume, as_json, with_teacher=False)


def distill(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a student on ground truth and on its teacher's predictions and attention."""
    _run(recipe, overrides, dry_run, resume, as_json, with_teacher=True)


def _run(
    path: Path, overrides: list[str] | None, dry_run: bool, resume: bool, as_json: bool, with_teacher: bool
) -> None:
    quiet_libraries()
    from amad.recipe import load_recipe
    from amad.training.run import TrainingRun

    with user_errors():
        run = TrainingRun(load_recipe(path, overrides or []), with_teacher=with_teacher, console=console)
        if dry_run:
            plan = run.plan()
            if as_json:
                print_json(plan)
                return
            print_table("Attention sites", ("model", "stack", "layers", "heads", "head width"), plan["sites"])
            if plan["pairs"]:
                print_table("Who learns from whom", ("student", "teacher", "weight"), plan["pairs"])
            print_table("Plan", ("what", "value"), [(name, value) for name, value in plan["summary"].items()])
            return
        result = run.train(resume=resume)
        if as_json:
            print_json(result)
            return
        print_table("Result", ("what", "value"), [(name, value) for name, value in result.items()])
