"""``amad bench``."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from amad.cli.bench_models import Device, Threads, models
from amad.cli.distill import Json
from amad.cli.screen import console, print_json, print_table, quiet_libraries, user_errors

app = typer.Typer(no_args_is_help=True)
app.command("models")(models)

TITLES = {
    "ours": "ours",
    "naive": "naive: maps and autograd",
    "compile": "torch.compile of naive",
    "sdpa": "SDPA, student and teacher",
    "logits": "logits alone",
    "operators": "logits and AMAD, operators",
    "maps": "logits and AMAD, maps",
}

Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


@app.callback()
def _root() -> None:
    """Measure what the attention losses, and models, cost on this machine."""


@app.command("ops")
def ops(
    op: Annotated[str, typer.Option(help="mse, kl or token.")] = "kl",
    batch: Annotated[int, typer.Option(help="Samples.")] = 1,
    teacher_heads: Annotated[int, typer.Option(help="Heads of the teacher.")] = 12,
    student_heads: Annotated[int, typer.Option(help="Heads of the student.")] = 12,
    width: Annotated[int, typer.Option(help="Numbers per head.")] = 64,
    queries: Annotated[int, typer.Option(help="Rows of a map.")] = 512,
    keys: Annotated[int, typer.Option(help="Columns of a map.")] = 512,
    threads: Threads = 1,
    dtype: Dtype = "float32",
    device: Device = None,
    repeats: Annotated[int, typer.Option(help="Rounds; each runs every contender once.")] = 11,
    as_json: Json = False,
) -> None:
    """One loss at one pair of layers, forward and backward, beside whole maps and beside attention itself.

    Ours is compared with float64 first, and is not timed if it is wrong.
    """
    quiet_libraries()
    from amad.cli.progress import steps_shown
    from amad.evaluation.bench_measuring import default_device
    from amad.evaluation.bench_ops import OpsCase, bench_ops

    with user_errors():
        case = OpsCase(
            op=op,
            batch=batch,
            teacher_heads=teacher_heads,
            student_heads=student_heads,
            width=width,
            queries=queries,
            keys=keys,
            threads=threads,
            dtype=dtype,
            device=device or default_device(),
        )
        with steps_shown(console) as advance:
            document = bench_ops(case, repeats, advance)
        if as_json:
            print_json(document)
            return
        _print_costs(
            f"{op}, {batch} x {teacher_heads} -> {student_heads} heads of {width}, {queries} x {keys}",
            document,
            "the inputs",
        )
        errors = document["errors"]
        _print_ratios(
            document,
            f"products of matrices alone would allow ours/sdpa = {document['floors']['ours/sdpa']:.2f}; off float64 "
            f"by {errors['value']:.0e} (value) and {errors['gradient']:.0e} (gradient)",
        )


@app.command("step")
def step(
    model: Annotated[str, typer.Option(help="vlt5 or vit.")] = "vlt5",
    tokens: Annotated[int, typer.Option(help="Image tokens: 197, 577 or 1024, say.")] = 197,
    variant: Annotated[str, typer.Option(help="Attention loss: mse, kl or token.")] = "kl",
    batch: Annotated[int, typer.Option(help="Samples.")] = 1,
    threads: Threads = 1,
    device: Device = None,
    repeats: Annotated[int, typer.Option(help="Rounds; each runs every contender once.")] = 5,
    as_json: Json = False,
) -> None:
    """A whole training step of two small models with random weights: without attention, by operators, by maps.

    Teacher and student have width 768, 12 heads and 2 layers (VL-T5: encoder and decoder each).
    """
    quiet_libraries()
    from amad.cli.progress import steps_shown
    from amad.evaluation.bench_measuring import default_device
    from amad.evaluation.bench_step import StepCase, bench_step

    with user_errors():
        case = StepCase(model, tokens, variant, batch, threads, device or default_device())
        with steps_shown(console) as advance:
            document = bench_step(case, repeats, advance)
        if as_json:
            print_json(document)
            return
        sizes = case.sizes
        _print_costs(
            f"one step of {model}, {batch} x {tokens} image tokens, {variant}; width {sizes.width}, "
            f"{sizes.heads} heads, {sizes.layers} layers",
            document,
            "models and optimiser state",
        )
        _print_ratios(document)


def _print_ratios(document: Mapping[str, Any], caption: str = "") -> None:
    rows = [(name, "–" if ratio is None else f"{ratio:.2f}") for name, ratio in document["ratios"].items()]
    print_table("Ratios", ("of", "ratio"), rows, caption)


def _print_costs(title: str, document: Mapping[str, Any], beyond: str) -> None:
    missing = document["missing"]
    rows = []
    for name, seconds in document["median_seconds"].items():
        peak = document["peak_extra_bytes"][name]
        why = missing.get(name) or missing.get(f"{name} memory") or ""
        rows.append(
            (
                TITLES[name],
                "–" if seconds is None else f"{1000 * seconds:,.1f} ms",
                "–" if peak is None else f"{peak / 2**20:,.1f}",
                why,
            )
        )
    columns = ("contender", "time", "peak MiB", "not measured because")
    n_shown = 4 if missing else 3
    clock = {"process": "CPU time of one thread", "wall": "wall time"}[document["clock"]]
    machine = document["machine"]
    print_table(
        title,
        columns[:n_shown],
        [row[:n_shown] for row in rows],
        f"{clock}, median of {document['repeats']} rounds; peak memory beyond {beyond}, in a process of its own; "
        f"{machine.get('gpu') or machine['cpu']}, torch {document['versions']['torch']}",
    )
