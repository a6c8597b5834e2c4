"""``amad evaluate``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from amad.cli.distill import Json, Overrides, RecipeArgument
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors


def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the recipe's own result when absent.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Where to write the official result file; beside the records when absent."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 100,
    as_json: Json = False,
) -> None:
    """Answer the validation questions of a recipe, write the official result file and score it."""
    quiet_libraries()
    from amad.cli.progress import counted
    from amad.data.collate import Seq2SeqCollator
    from amad.data.images import load_image_transform
    from amad.data.paths import write_whole
    from amad.errors import RecipeError
    from amad.evaluation.evaluate import accuracy, answer_questions
    from amad.models.load import load_model, load_tokenizer
    from amad.recipe import load_recipe
    from amad.training.run import MODEL_FOLDER
    from amad.training.splits import vqa_splits

    with user_errors():
        run = load_recipe(recipe, overrides or [])
        folder = model or Path(run.output) / MODEL_FOLDER
        loaded, tokenizer, transform = (
            load_model(folder),
            load_tokenizer(folder),
            load_image_transform(folder),
        )
        data = run.data.model_copy(update={"max_validation_questions": None})
        _, validation = vqa_splits(data, run.seed, transform.resize)
        if validation is None:
            raise RecipeError(
                "the recipe has neither data.validation nor data.holdout, so there is nothing to score."
            )
        collator = Seq2SeqCollator(tokenizer, transform, data.max_input_tokens, data.max_target_tokens)
        with counted(console, "answering", len(validation)) as advance:
            answers = answer_questions(
                loaded,
                tokenizer,
                validation,
                collator,
                batch_size=batch_size,
                max_new_tokens=data.max_target_tokens,
                on_progress=advance,
            )
        out = results or Path(run.output) / "results.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(answers, ensure_ascii=False))
        reached = accuracy(validation, answers)
        document = {"model": str(folder), "questions": len(answers), "results": str(out), "accuracy": reached}
        if as_json:
            print_json(document)
            return
        shown = "no answers to score with" if reached is None else f"{reached:.2f} %"
        print_table("Evaluation", ("what", "value"), [*list(document.items())[:-1], ("accuracy", shown)])
