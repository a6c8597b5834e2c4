"""``amad data check``."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from amad.cli.distill import Json, Overrides, RecipeArgument
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors

SHOWN = 20
"""So many problems are shown on the screen; more are written to a file."""


def check(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            help="Write an HTML page with examples of each split: the image, and its texts beneath it.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read all data of a recipe once, every image included; list every problem and count what there is.

    Exit status 1 if there is a problem.
    """
    quiet_libraries()
    import numpy as np

    from amad.cli.progress import counted
    from amad.data.paths import write_whole
    from amad.data.sheet import sheet_page
    from amad.recipe import load_recipe
    from amad.training.tasks import load_task

    with user_errors():
        run = load_recipe(recipe, overrides or [])
        data = run.data.whole().model_copy(update={"on_bad_example": "skip"})
        task = load_task(data, run.seed, np.asarray, partial(counted, console))
        found, problems = _read(task)
        document: dict[str, Any] = {
            "recipe": str(recipe),
            "splits": {name: _counted(examples) for name, examples in found.items()},
            "n_problems": len(problems),
            "problems": problems,
            "sheet": None if sheet is None else str(sheet),
        }
        if sheet is not None:
            sheet.parent.mkdir(parents=True, exist_ok=True)
            write_whole(sheet, sheet_page(f"{recipe.name}: {data.root}", found, task.splits.regions))
        if as_json:
            print_json(document)
        else:
            _show(document, task.items, Path(f"{recipe.stem}-problems.jsonl"))
        if problems:
            raise typer.Exit(1)


def _read(task: Any) -> tuple[dict[str, Sequence[Any]], list[dict[str, str]]]:
    """The good examples of each split, and what is wrong with the others; a split that is refused has none."""
    from amad.errors import DataError

    found: dict[str, Sequence[Any]] = {}
    refused = []
    for name in task.splits.names:
        try:
            examples = getattr(task.splits, name)
        except DataError as error:
            refused.append({"file": f"data.{name}", "entry": "all of it", "message": str(error)})
            continue
        if examples is not None:
            found[name] = examples
    return found, refused + [asdict(problem) for problem in task.problems]


def _counted(examples: Sequence[Any]) -> dict[str, int]:
    from amad.data.survey import count_split

    return asdict(count_split(examples))


def _show(document: dict[str, Any], items: str, overflow: Path) -> None:
    from amad.data.paths import write_lines

    targets = {
        "questions": "answers",
        "images": "captions",
        "sentences": "translations",
        "examples": "targets",
    }[items]
    columns = ["split", items, "images", f"{targets} each", f"without {targets}"]
    rows: list[list[str]] = []
    for name, counts in document["splits"].items():
        fewest, most = counts["fewest"], counts["most"]
        each = str(most) if fewest == most else f"{fewest} to {most}"
        rows.append(
            [name, f"{counts['items']:,}", f"{counts['images']:,}", each, f"{counts['unanswered']:,}"]
        )
    if items == "images":
        # One item per image.
        for row in (columns, *rows):
            del row[1]
    print_table("Good examples", columns, rows)
    problems = document["problems"]
    if problems:
        shown = [(one["file"], one["entry"], _without_place(one)) for one in problems[:SHOWN]]
        more = ""
        if len(problems) > SHOWN:
            write_lines(overflow, problems)
            more = f"the first {SHOWN} of {len(problems):,}; all are in {overflow}"
        print_table("Problems", ("file", "entry", "what is wrong"), shown, more)
    else:
        console.print("no problem found.")
    if document["sheet"] is not None:
        console.print(f"examples: {document['sheet']}", markup=False, highlight=False, soft_wrap=True)


def _without_place(problem: dict[str, str]) -> str:
    """The message without the file and the entry that it begins with."""
    return (
        problem["message"]
        .removeprefix(problem["file"])
        .lstrip(",: ")
        .removeprefix(problem["entry"])
        .lstrip(",: ")
    )
