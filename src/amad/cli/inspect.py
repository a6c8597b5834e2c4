"""``amad inspect``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from amad.cli.distill import Json, Overrides
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors

COLUMNS = ("stack", "layer", "heads", "key/value heads", "head width", "back-end", "module")


def inspect(
    model_or_recipe: Annotated[
        str,
        typer.Argument(
            help="A checkpoint folder, a model type such as 'blip', or a recipe.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List every attention site of a model, or of a recipe's models with their pairing."""
    quiet_libraries()
    with user_errors():
        if Path(model_or_recipe).suffix in (".yaml", ".yml"):
            from amad.recipe import load_recipe
            from amad.training.run import TrainingRun

            recipe = load_recipe(model_or_recipe, overrides or [])
            run = TrainingRun(recipe, with_teacher=recipe.teacher is not None, console=console)
            models = run.describe_sites()
            pairs = [(str(pair.student), str(pair.teacher), pair.weight) for pair in run.pairing]
        else:
            from amad.capture.sites import find_sites
            from amad.models.load import load_empty_model

            models = {"model": [_describe(site) for site in find_sites(load_empty_model(model_or_recipe))]}
            pairs = []
        if as_json:
            print_json(
                {
                    "models": {
                        name: [dict(zip(COLUMNS, row, strict=True)) for row in rows]
                        for name, rows in models.items()
                    },
                    "pairs": [dict(zip(("student", "teacher", "weight"), row, strict=True)) for row in pairs],
                }
            )
            return
        for name, rows in models.items():
            print_table(f"Attention sites of the {name}", COLUMNS, rows)
        if pairs:
            print_table("Who learns from whom", ("student", "teacher", "weight"), pairs)


def _describe(site: Any) -> tuple[Any, ...]:
    return (
        site.key.stack,
        site.key.layer,
        site.n_heads,
        site.n_kv_heads,
        site.width,
        site.backend,
        site.name,
    )
