"""``amad evaluate``."""

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amad.cli.distill import Json, Overrides, RecipeArgument
from amad.cli.evaluate_fidelity import load_teacher, print_fidelity
from amad.cli.screen import (
    FIGURE_TITLES,
    console,
    print_json,
    print_table,
    quiet_libraries,
    user_errors,
)

if TYPE_CHECKING:
    from amad.data.waiting import Wait
    from amad.evaluation.evaluate import Candidates
    from amad.recipe import Recipe
    from amad.recipe_data import RecipeData
    from amad.training.tasks import GeneratingTask, TaskDataset


def evaluate(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    model: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the recipe's own result when absent.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="Where to write the official result file (translations: one per line), and what was measured beside "
            "it; beside the records when absent, and nowhere for a model that is not the recipe's own."
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
    as_validated: Annotated[
        bool,
        typer.Option(
            "--as-validated",
            help="Only the items that training evaluates on, where the recipe limits them "
            "(data.max_validation_questions and the like); all of them otherwise.",
        ),
    ] = False,
    fidelity: Annotated[
        bool,
        typer.Option(
            "--fidelity",
            help="Let the recipe's teacher do the same, and tell how alike both are and how well each knows when it "
            "is right. Takes the teacher's time too.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Answer, caption or translate the validation set of a recipe, write the official result file and score it.

    An evaluation that was killed goes on with the same command. Several processes share one with
    torchrun --nproc-per-node 2 -m amad evaluate RECIPE
    """
    quiet_libraries()
    from amad.evaluation.processes import launched_processes
    from amad.recipe import load_recipe

    with user_errors():
        run = load_recipe(recipe, overrides or [])
        folder, own = _folder(run, recipe, model)
        with launched_processes(bool(run.training.get("use_cpu", False))) as state:
            task, document = _evaluate(
                state, run, folder, own, results, batch_size, blank_images, as_validated, fidelity
            )
        if not state.is_main_process:
            return
        if as_json:
            print_json(document)
            return
        print_table("Evaluation", ("what", "value"), _rows(run.task, task, document))
        if fidelity:
            print_fidelity(run.task, document, task.figures)


_DOING = {"vqa": "answering", "captions": "captioning", "translation": "translating"}
_UNSCORED = {
    "vqa": "no answers to score with",
    "captions": "no captions to score with",
    "translation": "no translations to score with",
}


_TITLES = FIGURE_TITLES | {
    "signature": "scored by",
    "blank_images": "images shown",
    "max_length": "longest text (tokens, start token included)",
    "min_length": "shortest text (tokens, start token included)",
    "num_beams": "beams",
    "ranked_answers": "answers to choose from",
    "compared_whole": "of them, compared whole",
    "batch_size": "items per batch",
    "decoded_now": "decoded now",
    "seconds": "time to decode (seconds)",
    "results": "result file",
    "bad_examples": "bad examples, left out",
}


def _rows(name: str, task: "GeneratingTask", document: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, with its scale and direction, for people."""
    first = ("model", task.items, *task.figures, "signature")
    shown = {key: document[key] for key in first if key in document} | document
    shown["blank_images"] = "blank ones" if document["blank_images"] else "the items' own"
    shown["results"] = document["results"] or "not written"
    if document["decoded_now"] < document[task.items]:
        shown["decoded_now"] = f"{document['decoded_now']}; the others were there"
    for figure, digits in task.figures.items():
        value = document[figure]
        unit = " %" if figure == "accuracy" else ""
        shown[figure] = _UNSCORED[name] if value is None else f"{value:.{digits}f}{unit}"
    return [
        (_TITLES.get(key, key), str(value)) for key, value in shown.items() if not isinstance(value, dict)
    ]


def _folder(run: "Recipe", recipe: Path, model: Path | None) -> tuple[Path, bool]:
    """Checkpoint folder of the model to evaluate, and whether it is the recipe's own."""
    from amad.errors import CheckpointError
    from amad.training.resumption import MODEL_FOLDER

    own = Path(run.output) / MODEL_FOLDER
    if model is None and not own.is_dir():
        raise CheckpointError(
            f"{own} is not there yet: it is what the recipe's run leaves behind. Run amad "
            f"{'distill' if run.distils else 'train'} {recipe} first, or name a checkpoint with --model FOLDER."
        )
    return model or own, model in (None, own)


def _evaluate(
    state: Any,
    run: "Recipe",
    folder: Path,
    own: bool,
    results: Path | None,
    batch_size: int | None,
    blank_images: bool,
    as_validated: bool,
    fidelity: bool,
) -> tuple["GeneratingTask", dict[str, Any]]:
    """Decode this process's share; in the first process, score all and write the files.

    Returns:
        The task, and what to tell; nothing to tell in other processes.
    """
    from amad.cli.progress import counted
    from amad.data.images import load_image_transform
    from amad.data.paths import write_whole
    from amad.data.waiting import unseen
    from amad.errors import RecipeError
    from amad.evaluation.evaluate import Decoding, generate_batches
    from amad.evaluation.fidelity import batched, measure_fidelity
    from amad.evaluation.predictions import (
        Shards,
        decode_shards,
        digest_of_files,
        digest_of_items,
        digest_of_model,
        digest_of_texts,
        kept_to_one,
    )
    from amad.evaluation.processes import shared_temporary_folder
    from amad.models.load import load_model, load_tokenizer
    from amad.records import environment
    from amad.training.models import check_sight, new_collator
    from amad.training.resumption import BAD_EXAMPLES_FILE
    from amad.training.tasks import GeneratingTask, load_task
    from amad.training.values import checked_values, decoding_values

    data, values = run.data if as_validated else run.data.whole(), decoding_values(run)
    given = checked_values(run.training)
    decoding = Decoding(*(values[f"generation_{key}"] for key in ("max_length", "num_beams", "min_length")))
    size = batch_size or int(given.get("per_device_eval_batch_size", 100))
    model = load_model(folder).to(state.device)
    tokenizer = load_tokenizer(folder)
    transform = load_image_transform(folder) if data.regions is None else None
    check_sight(model, data.regions, transform)
    teacher = load_teacher(run, model, tokenizer, transform).to(state.device) if fidelity else None
    # One process speaks for all.
    wait: Wait = partial(counted, console) if state.is_main_process else unseen
    task = load_task(data, run.seed, None if transform is None else transform.resize, wait)
    if not isinstance(task, GeneratingTask):
        raise RecipeError(
            f"task {run.task} is scored while it trains, and its figures are in the run's records. Evaluate a model "
            "that was fine-tuned from it."
        )
    validation, is_scored = _validation(run, task), task.is_scored
    collator = new_collator(model, tokenizer, transform, data)
    candidates = _candidates(task, data, collator)
    kind = "-blank" * blank_images + "-validated" * as_validated
    out = _result_file(task, folder, own, results, kind)
    reading: dict[str, Any] = {
        "blank_images": blank_images,
        "workers": int(given.get("dataloader_num_workers") or 0),
    }
    around = environment(str(state.device))
    how: dict[str, Any] = {"blank_images": blank_images}
    of = {"model": digest_of_model(folder), "data": digest_of_items(validation)}
    if candidates is None:
        how |= asdict(decoding)
    else:
        how |= {"ranked_answers": len(candidates.texts), "compared_whole": candidates.first}
        of["answers"] = digest_of_texts(candidates.texts)
    # Labels of answers are cut to this length.
    how_long = {key: getattr(data, key) for key in ("max_input_tokens", "max_target_tokens")}
    decides = of | how | how_long | {"files": digest_of_files(validation)}
    decides |= {name: around[name] for name in ("amad", "torch", "transformers")}
    started = time.perf_counter()
    with ExitStack() as stack:

        def decode(decoder: Any, digest: str, kind: str, doing: str) -> tuple[Shards, int]:
            place = _beside(out, kind) if out else stack.enter_context(shared_temporary_folder(state))
            with state.main_process_first():
                if out and state.is_main_process:
                    stack.enter_context(kept_to_one(place))
                shards = Shards(place, decides | {"decoder": digest}, len(validation), size)
            generate = partial(
                generate_batches,
                decoder,
                tokenizer,
                validation,
                collator,
                decoding,
                candidates=candidates,
                **reading,
            )
            return shards, decode_shards(state, shards, generate, size, doing, wait)

        shards, decoded = decode(model, of["model"], "predictions", _DOING[run.task])
        seconds = round(time.perf_counter() - started, 3)
        if teacher is not None:
            of["teacher"] = digest_of_model(run.teacher or "")
            teacher_shards, _ = decode(
                teacher, of["teacher"], "teacher-predictions", f"the teacher is {_DOING[run.task]}"
            )
        document: dict[str, Any] = {
            "model": str(folder),
            **how,
            "batch_size": size,
            "processes": state.num_processes,
            task.items: len(validation),
            "decoded_now": decoded,
            "seconds": seconds,
            "results": None if out is None else str(out),
        }
        if state.is_main_process:
            said = shards.texts()
            if out is not None:
                # Before the scorer, which may refuse it.
                write_whole(out, task.results(said))
            if task.problems.skips:
                document["bad_examples"] = task.problems.n_bad
            document |= task.score(said) if is_scored else dict.fromkeys(task.figures)
            if teacher is not None:
                teacher_said = teacher_shards.texts()
                scores = task.score(teacher_said) if is_scored else {}
                document["fidelity"] = {"teacher": {"model": run.teacher, **scores}} | measure_fidelity(
                    model,
                    teacher,
                    validation,
                    lambda texts: batched(
                        validation, collator, size, texts=texts, max_length=decoding.max_length, **reading
                    ),
                    (said, teacher_said),
                    wait,
                )
            of_what = data.model_dump(mode="json", exclude_none=True, exclude={"train", "image_cache_gib"})
            document |= {"data": of_what, "digests": of, "environment": around}
            if out is not None:
                if task.problems.skips:
                    task.problems.write(out.with_name(f"{out.stem}-{BAD_EXAMPLES_FILE}"))
                as_text = json.dumps(document, indent=2, ensure_ascii=False)
                write_whole(_beside(out, "metrics.json"), as_text + "\n")
            shards.remove()
            if teacher is not None:
                teacher_shards.remove()
    return task, document


def _candidates(task: "GeneratingTask", data: "RecipeData", collator: Any) -> "Candidates | None":
    """The answers to rank; None where answers are generated."""
    from amad.evaluation.evaluate import Candidates

    ranking = getattr(data, "ranking", None)
    if ranking is None:
        return None
    answers = task.answer_list(ranking.answers)  # type: ignore[attr-defined]
    return Candidates(answers, collator.labels(answers), ranking.first)


def _validation(run: "Recipe", task: "GeneratingTask") -> "TaskDataset":
    from amad.errors import RecipeError

    if task.validation is None:
        keys = run.data.validation_keys
        without = f"neither {' nor '.join(keys)}" if len(keys) > 1 else f"no {keys[0]}"
        raise RecipeError(
            f"the recipe has {without}, so there is nothing to score. Add {'one' if len(keys) > 1 else 'it'}."
        )
    return task.validation


def _result_file(
    task: "GeneratingTask", folder: Path, own: bool, results: Path | None, kind: str
) -> Path | None:
    """Where to write the results, if anywhere."""
    from amad.errors import RecipeError

    name = Path(task.results_file)
    if results is None:
        return folder.with_name(f"{name.stem}{kind}{name.suffix}") if own else None
    # Said before hours of decoding.
    if results.is_dir():
        raise RecipeError(f"--results {results} is a folder, and results are one file. Name a file.")
    return results


def _beside(out: Path, kind: str) -> Path:
    """results.json -> results.KIND"""
    return out.with_name(f"{out.name.removesuffix('.json').removesuffix('.txt')}.{kind}")
