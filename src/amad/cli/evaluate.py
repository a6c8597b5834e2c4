"""``amad evaluate``."""

from functools import partial
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
            help="Where to write the official result file (translations: one per line); beside the records when "
            "absent, and nowhere for a model that is not the recipe's own."
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The recipe's training.per_device_eval_batch_size when absent, or 100.",
            show_default=False,
        ),
    ] = None,
    blank_images: Annotated[
        bool,
        typer.Option(
            "--blank-images",
            help="Show the model blank images: every pixel the mean colour of its image processor (zero after "
            "normalisation), every region feature and box zero. What it then says, it says of the text alone.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer, caption or translate the validation set of a recipe, write the official result file and score it."""
    quiet_libraries()
    from amad.cli.progress import counted
    from amad.data.collate import Seq2SeqCollator
    from amad.data.images import load_image_transform
    from amad.data.paths import write_whole
    from amad.errors import CheckpointError, RecipeError
    from amad.evaluation.evaluate import Decoding, generate_texts
    from amad.models.load import load_model, load_tokenizer
    from amad.recipe import load_recipe
    from amad.training.resumption import BAD_EXAMPLES_FILE, MODEL_FOLDER
    from amad.training.tasks import load_task
    from amad.training.values import checked_values, decoding_values

    with user_errors():
        run = load_recipe(recipe, overrides or [])
        own = Path(run.output) / MODEL_FOLDER
        folder = model or own
        values = decoding_values(run)
        decoding = Decoding(values["generation_max_length"], values["generation_num_beams"])
        given = checked_values(run.training).get("per_device_eval_batch_size", 100)
        if model is None and not own.is_dir():
            raise CheckpointError(
                f"{own} is not there yet: it is what the recipe's run leaves behind. Run amad "
                f"{'distill' if run.distils else 'train'} {recipe} first, or name a checkpoint with --model FOLDER."
            )
        loaded = load_model(folder).to(_device())
        tokenizer, transform = load_tokenizer(folder), load_image_transform(folder)
        data = run.data.whole()
        task = load_task(data, run.seed, transform.resize, partial(counted, console))
        validation, scored = task.validation, task.is_scored
        if validation is None:
            keys = data.validation_keys
            without = f"neither {' nor '.join(keys)}" if len(keys) > 1 else f"no {keys[0]}"
            raise RecipeError(
                f"the recipe has {without}, so there is nothing to score. Add {'one' if len(keys) > 1 else 'it'}."
            )
        collator = Seq2SeqCollator(tokenizer, transform, data.max_input_tokens, data.max_target_tokens)
        with counted(console, _DOING[run.task], len(validation)) as advance:
            said = generate_texts(
                loaded,
                tokenizer,
                validation,
                collator,
                decoding,
                batch_size=batch_size or given,
                blank_images=blank_images,
                on_progress=advance,
            )
        file = Path(task.results_file)
        name = f"{file.stem}-blank{file.suffix}" if blank_images else file.name
        out = results or (own.with_name(name) if folder == own else None)
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(out, task.results(said))
            if task.problems.skips:
                task.problems.write(out.with_name(f"{out.stem}-{BAD_EXAMPLES_FILE}"))
        document = {
            "model": str(folder),
            "images": "blank" if blank_images else "shown",
            "max_length": decoding.max_length,
            "num_beams": decoding.num_beams,
            task.items: len(said),
            "results": None if out is None else str(out),
        }
        if task.problems.skips:
            document["bad_examples"] = task.problems.n_bad
        document |= task.score(said) if scored else dict.fromkeys(task.figures)
        if as_json:
            print_json(document)
            return
        document["results"] = "not written" if out is None else str(out)
        for name, digits in task.figures.items():
            unit = " %" if name == "accuracy" else ""
            document[name] = f"{document[name]:.{digits}f}{unit}" if scored else _UNSCORED[run.task]
        print_table("Evaluation", ("what", "value"), list(document.items()))


_DOING = {"vqa": "answering", "captions": "captioning", "translation": "translating"}
_UNSCORED = {
    "vqa": "no answers to score with",
    "captions": "no captions to score with",
    "translation": "no translations to score with",
}


def _device() -> Any:
    import torch

    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
