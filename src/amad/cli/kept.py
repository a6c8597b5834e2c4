"""What a run kept of its teacher, measured when it ends, for the report."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amad.cli.screen import console

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from amad.axes import SitePair
    from amad.training.parts import RunParts


def record_kept(parts: "RunParts", model: "PreTrainedModel", folder: Path) -> None:
    """Answer examples, measure latency, and write both into the folder of the run.

    Args:
        parts: Of the run.
        model: What was trained.
        folder: Of the run, with its records.

    Raises:
        AmadError: if data cannot be read or attention cannot be recorded.
    """
    from amad.cli.progress import counted
    from amad.data.pretraining import PretrainingDataset
    from amad.data.pretraining_pairs import CaptionPairs
    from amad.evaluation.evaluate import Decoding
    from amad.evaluation.examples import EXAMPLES_FOLDER, measure_latency, write_examples
    from amad.records import RunRecords
    from amad.training.resumption import RECORDS_FILE
    from amad.training.values import decoding_values

    models = {"student": model} if parts.teacher is None else {"student": model, "teacher": parts.teacher}
    models = {name: one.to(model.device) for name, one in models.items()}
    values = decoding_values(parts.recipe)
    train, validation = parts.task.train, parts.task.validation
    new_tokens = values["generation_max_length"] - 1
    told: dict[str, dict[str, Any]] = {name: {} for name in models}
    # In pre-training, which mixes tasks, there is nothing that both would answer.
    asked = None if isinstance(validation, PretrainingDataset | CaptionPairs) else validation
    if parts.teacher is not None and asked is not None:
        told = write_examples(
            folder / EXAMPLES_FOLDER,
            models,
            parts.tokenizer,
            asked,
            parts.collator,
            Decoding(*(values[f"generation_{key}"] for key in ("max_length", "num_beams", "min_length"))),
            _pairs(parts, model),
            wait=partial(counted, console),
        )
    batch = parts.collator([(train if validation is None else validation)[0]])
    latency = measure_latency(models, batch, new_tokens)
    with RunRecords(folder / RECORDS_FILE) as records:
        for name, found in told.items():
            who = "model" if parts.teacher is None else name
            records.write(
                "model",
                who=who,
                parameters=models[name].num_parameters(),
                latency_seconds=latency[name],
                latency_tokens=new_tokens,
                device=str(model.device),
                **found,
            )


def _pairs(parts: "RunParts", model: "PreTrainedModel") -> "tuple[SitePair, ...]":
    """Who learned from whom; of a student that learned alone, who would have."""
    from amad.capture.sites import find_sites
    from amad.training.pairing import Pairing

    if parts.with_teacher or parts.teacher is None:
        return parts.pairing.pairs
    term = parts.recipe.objective.attention
    return Pairing.make(
        [site.key for site in find_sites(model)],
        [site.key for site in find_sites(parts.teacher)],
        parts.recipe.pairing,
        None if term is None else term.stacks,
        lambda stack: parts.teacher_importance(stack).of_layers(),
    ).pairs


def needs_kept(folder: Path) -> bool:
    """Whether a run that ended lacks what :func:`record_kept` writes: an earlier version made it, or that failed."""
    from amad.records import read_records
    from amad.training.resumption import MODEL_FOLDER, RECORDS_FILE

    events = read_records(folder / RECORDS_FILE)
    return (folder / MODEL_FOLDER).is_dir() and not any("latency_seconds" in event for event in events)


def record_kept_later(folder: Path) -> None:
    """Do for a run that ended what :func:`record_kept` does at its end.

    Raises:
        AmadError: if its models or its data are not where its recipe says, or as :func:`record_kept`.
    """
    from amad.models.load import load_model
    from amad.recipe import load_recipe
    from amad.records import read_records
    from amad.training.parts import RunParts
    from amad.training.resumption import MODEL_FOLDER, RECIPE_FILE, RECORDS_FILE

    started = next(event for event in read_records(folder / RECORDS_FILE) if event["event"] == "recipe")
    parts = RunParts(load_recipe(folder / RECIPE_FILE), with_teacher=bool(started.get("with_teacher")))
    model = load_model(folder / MODEL_FOLDER)
    # What was trained takes the place of its start.
    parts.model = model
    record_kept(parts, model, folder)
