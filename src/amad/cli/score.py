"""``amad score``."""

from pathlib import Path
from typing import Annotated

import typer

from amad.cli.distill import Json
from amad.cli.screen import print_json, print_table, user_errors

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Score result files with the official metrics."""


@app.command("vqa")
def vqa(
    questions: Annotated[Path, typer.Option(help="Official questions, plain or .gz.", show_default=False)],
    annotations: Annotated[
        Path, typer.Option(help="Official annotations, plain or .gz.", show_default=False)
    ],
    results: Annotated[Path, typer.Option(help="Official result file, plain or .gz.", show_default=False)],
    as_json: Json = False,
) -> None:
    """Official VQA accuracy, in percent, its quirks included."""
    from amad.metrics.vqa import score_vqa

    with user_errors():
        scores = score_vqa(questions, annotations, results)
        if as_json:
            print_json(
                {
                    "overall": scores.overall,
                    "per_answer_type": scores.per_answer_type,
                    "per_question_type": scores.per_question_type,
                }
            )
            return
        rows = [("all questions", f"{scores.overall:.2f}")]
        rows += [(name, f"{value:.2f}") for name, value in sorted(scores.per_answer_type.items())]
        rows += [(f"  {name}", f"{value:.2f}") for name, value in sorted(scores.per_question_type.items())]
        print_table("VQA accuracy", ("questions", "%"), rows)
