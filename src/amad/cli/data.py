"""``amad data``."""

from pathlib import Path
from typing import Annotated

import typer

from amad.cli import data_check
from amad.cli.distill import Json
from amad.cli.screen import console, print_json, print_table, user_errors

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Check data, or make some."""


app.command("check")(data_check.check)


@app.command("shapes")
def shapes(
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    images: Annotated[int, typer.Option(help="Images in both splits together.")] = 8000,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal files.")] = 0,
    as_json: Json = False,
) -> None:
    """Render scenes of coloured shapes, with questions, captions and translations in the official formats."""
    from amad.cli.progress import counted
    from amad.data.shapes import write_shapes

    with user_errors():
        with counted(console, "rendering", images) as advance:
            summary = write_shapes(out, images, seed=seed, on_progress=advance)
        if as_json:
            print_json(
                {
                    "out": str(out),
                    "images": summary.n_images,
                    "questions": summary.n_questions,
                    "majority_accuracy": summary.baselines.majority,
                    "question_only_accuracy": summary.baselines.question_only,
                }
            )
            return
        rows = [(split, summary.n_images[split], summary.n_questions[split]) for split in summary.n_images]
        print_table(
            f"Scenes in {out}",
            ("split", "images", "questions"),
            rows,
            f"without looking: {summary.baselines.majority:.1f} % for the most frequent answer, "
            f"{summary.baselines.question_only:.1f} % for the most frequent one per question",
        )
