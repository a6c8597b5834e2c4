"""``amad evaluate``."""

import json
from pathlib import Path
from typing import Annotated, Any

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
        typer.Option(
            help="Where to write the official result file; beside the records when absent, and nowhere for a "
            "model that is not the recipe's own."
        ),
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
    from amad.errors import CheckpointError, RecipeError
    from amad.evaluation.evaluate import accuracy, answer_questions
    from amad.models.load import load_model, load_tokenizer
    from amad.recipe import load_recipe
    from amad.training.resumption import MODEL_FOLDER
    from amad.training.splits import vqa_splits

    with user_errors():
        run = load_recipe(recipe, overrides or [])
        own = Path(run.output) / MODEL_FOLDER
        folder = model or own
        if model is None and not own.is_dir():
            raise CheckpointError(
                f"{own} is not there yet: it is what the recipe's run leaves behind. Run amad "
                f"{'distill' if run.distils else 'train'} {recipe} first, or name a checkpoint with --model FOLDER."
            )
        loaded = load_model(folder).to(_device())
        tokenizer, transform = load_tokenizer(folder), load_image_transform(folder)
        data = run.data.model_copy(update={"max_validation_questions": None})
        _, validation = vqa_splits(data, run.seed, transform.resize)
        if validation is None:
            raise RecipeError(
                "the recipe has neither data.validation nor data.holdout, so there is nothing to score. Add one."
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
        out = results or (own.with_name("results.json") if folder == own else None)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(out, json.dumps(answers, ensure_ascii=False))
        reached = accuracy(validation, answers)
        document = {
            "model": str(folder),
            "questions": len(answers),
            "results": None if out is None else str(out),
            "accuracy": reached,
        }
        if as_json:
            print_json(document)
            return
        document["results"] = "not written" if out is None else str(out)
        document["accuracy"] = "no answers to score with" if reached is None else f"{reached:.2f} %"
        print_table("Evaluation", ("what", "value"), list(document.items()))


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
