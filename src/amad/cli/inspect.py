"""``amad inspect``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from amad.cli.distill import PAIR_COLUMNS, Json, Overrides
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors


def inspect(
    model_or_recipe: Annotated[
        str,
        typer.Argument(
            help="A checkpoint folder, the name of a model on the hub, or a recipe.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """List every attention site of a model, or of a recipe's models with their pairing."""
    quiet_libraries()
    from amad.training.plan import SITE_COLUMNS, site_row

    with user_errors():
        sites, pairs = _look(model_or_recipe, overrides or [])
        models = {name: [site_row(site) for site in found] for name, found in sites.items()}
        if as_json:
            print_json(
                {
                    "models": {
                        name: [dict(zip(SITE_COLUMNS, row, strict=True)) for row in rows]
                        for name, rows in models.items()
                    },
                    "pairs": [dict(zip(PAIR_COLUMNS, row, strict=True)) for row in pairs],
                }
            )
            return
        for name, rows in models.items():
            print_table(f"Attention sites of the {name}", SITE_COLUMNS, rows)
        if pairs:
            print_table("Who learns from whom", PAIR_COLUMNS, pairs)


def _look(model_or_recipe: str, overrides: list[str]) -> tuple[dict[str, Any], list[tuple[str, str, float]]]:
    """The sites of each model by name, and the pairs."""
    from amad.errors import RecipeError

    if Path(model_or_recipe).suffix in (".yaml", ".yml"):
        from amad.recipe import load_recipe
        from amad.training.run import TrainingRun

        recipe = load_recipe(model_or_recipe, overrides)
        run = TrainingRun(recipe, with_teacher=recipe.distils, console=console)
        return run.parts.sites, run.pair_rows()

    from amad.capture.sites import find_sites
    from amad.models.load import load_empty_model

    if overrides:
        raise RecipeError(
            f"{overrides[0]!r} overrides a key of a recipe, and {model_or_recipe} is a model. Leave it out."
        )
    return {"model": find_sites(load_empty_model(model_or_recipe))}, []
