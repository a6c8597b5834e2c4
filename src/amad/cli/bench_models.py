"""``amad bench models``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from amad.cli.distill import Json
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors
from amad.errors import RecipeError

Threads = Annotated[int, typer.Option(help="Threads of torch. One is timed in CPU time, more in wall time.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; cuda where there is one when absent.")]


def models(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoint folders, or names on the hub; the others are compared with the first.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        Path | None, typer.Option(help="Measure on its validation data; on random inputs when absent.")
    ] = None,
    new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Length of every generated text; the recipe's max_target_tokens, or 10, when absent.",
            show_default=False,
        ),
    ] = None,
    text_tokens: Annotated[int, typer.Option(help="Words of every random input.")] = 20,
    largest_batch: Annotated[int, typer.Option(help="No larger batch is tried.")] = 256,
    threads: Threads = 1,
    device: Device = None,
    repeats: Annotated[int, typer.Option(help="Rounds at batch 1; each runs every model once.")] = 20,
    as_json: Json = False,
) -> None:
    """Size, arithmetic, latency, throughput and memory of checkpoints side by side, a teacher and its student, say.

    Models that generate text do so greedily, encoder included, with equally many tokens each; others do one forward
    pass. Reading images and text is not part of it.
    """
    quiet_libraries()
    from amad.cli.progress import steps_shown
    from amad.evaluation.bench_measuring import default_device
    from amad.evaluation.bench_models import ModelsCase, bench_models
    from amad.models.checkpoint import located
    from amad.recipe import load_recipe

    with user_errors():
        named = dict(zip(_short_names(checkpoints), map(located, checkpoints), strict=True))
        run = None if recipe is None else load_recipe(recipe)
        longest = 10 if run is None else run.data.max_target_tokens
        case = ModelsCase(
            checkpoints=named,
            new_tokens=longest if new_tokens is None else new_tokens,
            text_tokens=text_tokens,
            largest_batch=largest_batch,
            threads=threads,
            device=device or default_device(),
            inputs=None if run is None else _recipe_inputs(run, named, largest_batch),
        )
        with steps_shown(console) as advance:
            document = bench_models(case, repeats, advance)
        document["recipe"] = None if recipe is None else str(recipe)
        if as_json:
            print_json(document)
            return
        _print_models(document)


# Key, what a reader sees of it, the unit it is divided by, decimals, and which direction is better.
_MODEL_ROWS = (
    ("parameters", "parameters", 1, 0, "fewer"),
    ("checkpoint_bytes", "weights in the checkpoint (MiB)", 2**20, 2, "fewer"),
    ("flops", "arithmetic per example (GFLOP)", 1e9, 3, "fewer"),
    ("latency_seconds_median", "time of one example, median (ms)", 1e-3, 1, "less"),
    ("latency_seconds_p95", "time of one example, 95th percentile (ms)", 1e-3, 1, "less"),
    ("peak_extra_bytes", "memory at batch 1 beyond weights, peak (MiB)", 2**20, 1, "less"),
    ("best_examples_per_second", "throughput at the best batch (examples/s)", 1, 1, "more"),
    ("best_batch", "the best batch (examples)", 1, 0, ""),
    ("best_peak_extra_bytes", "memory at the best batch beyond weights, peak (MiB)", 2**20, 1, "less"),
)
_STOPPED = {
    "throughput": "twice and four times the batch bring no more throughput",
    "memory": "a larger batch would not fit into memory",
    "largest batch": "no larger batch was tried; --largest-batch sets the limit",
}


def _print_models(document: Mapping[str, Any]) -> None:
    names = list(document["models"])
    columns, rows = ["what"], []
    for name in names:
        columns += [name] if name == names[0] else [name, "ratio"]
    for key, title, unit, digits, better in _MODEL_ROWS:
        row = [title]
        for name in names:
            value = document["models"][name][key]
            row.append("–" if value is None else f"{value / unit:,.{digits}f}")
            if name != names[0]:
                ratio = document["ratios"][name].get(key)
                row.append("–" if ratio is None else f"{ratio:.2f}")
        rows.append([*row, better])
    generating = {name for name in names if document["models"][name]["generates"]}
    work = {
        len(names): f"each generates exactly {document['new_tokens']} tokens",
        0: "each does one forward pass",
    }.get(len(generating), f"{', '.join(sorted(generating))} generate {document['new_tokens']} tokens each")
    inputs = (
        f"random images and {document['text_tokens']} random words, where a model reads them"
        if document["recipe"] is None
        else f"the validation data of {document['recipe']}"
    )
    clock = {"process": "CPU time of one thread", "wall": "wall time"}[document["clock"]]
    machine = document["machine"]
    told_apart = all(one["peak_extra_bytes"] is not None for one in document["ratios"].values())
    print_table(
        f"What the models cost{'' if len(names) == 1 else f'; ratios to {names[0]}'}",
        [*columns, "better"],
        rows,
        f"{work}, on {inputs}; a multiplication with its addition is 2 FLOP; {clock}, {document['repeats']} rounds in "
        f"which the models take turns; {machine.get('gpu') or machine['cpu']}, torch {document['versions']['torch']}"
        + ("" if told_apart else "; a few MiB of memory are not told apart")
        + "".join(f"\n{line}" for line in _stops(document))
        + "".join(f"\n{name}: {why}" for name, why in document["missing"].items()),
    )


def _stops(document: Mapping[str, Any]) -> list[str]:
    """For each reason to try no larger batch, the models that it held for."""
    models = document["models"]
    return [
        f"{', '.join(names)}: {why}"
        for reason, why in _STOPPED.items()
        if (names := [name for name, one in models.items() if one["stopped"] == reason])
    ]


def _short_names(checkpoints: Sequence[str]) -> list[str]:
    """What tells the folders apart: their last names, without those that all share."""
    parts = [list(Path(path).absolute().parts) for path in checkpoints]
    if len(parts) == 1:
        return list(checkpoints)
    while all(len(one) > 1 for one in parts) and len({one[-1] for one in parts}) == 1:
        parts = [one[:-1] for one in parts]
    short = [one[-1] for one in parts]
    if len(set(short)) < len(short):
        short = list(checkpoints)
    if len(set(short)) < len(short):
        raise RecipeError(f"{', '.join(short)}: a checkpoint is named twice. Name each once.")
    return short


def _recipe_inputs(run: Any, named: Mapping[str, str], n: int) -> dict[str, Any]:
    """The first validation examples of a recipe, as each checkpoint's own tokenizer and image processor read them."""
    from amad.data.images import load_image_transform
    from amad.models.load import load_empty_model, load_tokenizer
    from amad.training.models import new_collator
    from amad.training.tasks import load_task

    inputs = {}
    for name, folder in named.items():
        transform = load_image_transform(folder) if run.data.regions is None else None
        task = load_task(run.data, run.seed, None if transform is None else transform.resize)
        dataset = task.train if task.validation is None else task.validation
        collator = new_collator(load_empty_model(folder), load_tokenizer(folder), transform, run.data)
        batch = collator([dataset[index] for index in range(min(n, len(dataset)))])
        inputs[name] = {key: value.numpy() for key, value in batch.items()}
    return inputs
