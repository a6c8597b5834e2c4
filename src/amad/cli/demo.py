"""``amad demo``: the main job, small, with nothing but the package."""

from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, cast

import typer
import yaml

from amad.cli.distill import Json
from amad.cli.screen import (
    check_alone,
    console,
    output,
    print_json,
    print_table,
    quiet_libraries,
    user_errors,
)

N_IMAGES = 8000
SCENES_SEED = 2
TARGET_SHARE = 0.9
NEW_TOKENS = 2

LEARNING_RATES = {"alone": 1e-3, "amad": 2e-3}
"""Each student's best of 1e-3, 2e-3 and more, found on other scenes (LOG.md): neither is held back by the other's."""

STUDENTS = ("alone", "amad")
TITLES = {"teacher": "teacher", "alone": "student, ground truth only", "amad": "student, AMAD"}

COLUMNS = (
    "model",
    "heads",
    "layers",
    "parameters",
    "accuracy",
    "share of teacher",
    "examples to 90 %",
    "latency",
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.")] = Path("runs/demo"),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps of each student; the recipe's when absent.")
    ] = None,
    images: Annotated[int, typer.Option(min=100, help="Scenes to render.")] = N_IMAGES,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the students' start and of the order of examples.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Distil a small VL-T5 in minutes, without network, GPU or data: 8 heads teach 2.

    Renders scenes of coloured shapes with questions, takes the teacher that ships with amad, and trains one
    student twice from the same start, with the same data and budget: on ground truth alone, and with AMAD.
    """
    quiet_libraries()
    from amad.cli.kept import record_kept
    from amad.cli.progress import counted
    from amad.data.shapes import write_shapes
    from amad.errors import CheckpointError, RecipeError
    from amad.models.load import load_model
    from amad.recipe import check_recipe
    from amad.training.run import TrainingRun

    with user_errors(), as_file(files("amad") / "assets") as assets:
        check_alone("and amad distill on several devices")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise RecipeError(
                f"{out} is there already, and nothing is overwritten. Remove it, or give --out FOLDER."
            )
        scenes, teacher_folder = out / "scenes", assets / "shapes-teacher"
        if not teacher_folder.is_dir():
            raise CheckpointError(
                f"{teacher_folder} is not there: the teacher of the demo ships with amad. Install amad again, or "
                f"train the teacher with recipes of your own: amad train RECIPE."
            )
        tree = yaml.safe_load((assets / "shapes-amad.yaml").read_text(encoding="utf-8"))
        tree |= {"teacher": str(teacher_folder), "seed": seed}
        tree["data"]["root"] = str(scenes)
        if steps is not None:
            tree["training"]["max_steps"] = steps
        runs = {
            name: TrainingRun(
                check_recipe(
                    tree
                    | {
                        "output": str(out / name),
                        "training": tree["training"] | {"learning_rate": LEARNING_RATES[name]},
                    },
                    source="demo",
                ),
                with_teacher=name == "amad",
                console=console,
            )
            for name in STUDENTS
        }
        # Whatever is wrong with the teacher is said before anything is written.
        load_model(teacher_folder)
        with counted(console, "rendering scenes", images) as advance:
            summary = write_shapes(scenes, images, seed=SCENES_SEED, on_progress=advance)
        results: dict[str, dict[str, Any]] = {}
        for name, run in runs.items():
            console.print(TITLES[name], highlight=False)
            results[name] = run.train()
            record_kept(run.parts, run.parts.model, out / name)
        rows = _measure(runs["amad"], {name: Path(result["model"]) for name, result in results.items()})
        document = {
            "scenes": str(scenes),
            "question_only_accuracy": summary.baselines.question_only,
            "models": {
                row["name"]: row
                | {"examples_to_90": _examples_to(results.get(row["name"]), rows[0]["accuracy"])}
                for row in rows
            },
        }
        if as_json:
            print_json(document)
            return
        _show(document, out)


def _measure(run: Any, students: dict[str, Path]) -> list[dict[str, Any]]:
    """Accuracy on every validation question and latency, teacher first; written to the students' records as well."""
    import torch

    from amad.capture.sites import find_sites
    from amad.cli.progress import counted
    from amad.data.vqa import VqaDataset
    from amad.evaluation.efficiency import count_parameters
    from amad.evaluation.evaluate import accuracy, answer_questions
    from amad.evaluation.examples import measure_latency
    from amad.models.load import load_model
    from amad.records import RunRecords
    from amad.training.resumption import RECORDS_FILE

    data = run.recipe.data.model_copy(update={"max_validation_questions": None})
    validation = cast(VqaDataset, run.parts.task_of(data).validation)
    # All on the CPU, wherever they were trained, so that latencies compare.
    folders = {"teacher": run.recipe.teacher, **students}
    models = {name: load_model(folder, dtype=torch.float32) for name, folder in folders.items()}
    rows: list[dict[str, Any]] = []
    whole = len(models) * len(validation)
    with counted(console, "answering", whole) as advance:
        for name, model in models.items():
            before = len(rows) * len(validation)
            results = answer_questions(
                model,
                run.parts.tokenizer,
                validation,
                run.parts.collator,
                batch_size=250,
                max_new_tokens=3,
                on_progress=partial(_shift, advance, before, whole),
            )
            sites = find_sites(model)
            rows.append(
                {
                    "name": name,
                    "accuracy": accuracy(validation, results),
                    "parameters": count_parameters(model),
                    "heads": sites[0].n_heads,
                    "layers": {
                        stack: sum(site.key.stack == stack for site in sites)
                        for stack in dict.fromkeys(site.key.stack for site in sites)
                    },
                }
            )
    batch = run.parts.collator([validation[0]])
    latencies = measure_latency(models, batch, NEW_TOKENS, repeats=20)
    for row in rows:
        row["latency_seconds"] = latencies[row["name"]]["median"]
    accuracies = {row["name"]: row["accuracy"] for row in rows}
    for name, folder in students.items():
        with RunRecords(folder.with_name(RECORDS_FILE)) as records:
            for who, model in (("student", name), ("teacher", "teacher")):
                records.write(
                    "model",
                    who=who,
                    score=accuracies[model],
                    score_items=len(validation),
                    latency_seconds=latencies[model],
                    latency_tokens=NEW_TOKENS,
                    device="cpu",
                )
    return rows


def _shift(advance: Callable[[int, int], None], before: int, whole: int, done: int, _: int) -> None:
    """Move the one bar that several counts share."""
    advance(before + done, whole)


def _examples_to(result: dict[str, Any] | None, teacher_accuracy: float) -> int | None:
    """Examples seen when the student first reached 90 % of the teacher's accuracy; None if it never did."""
    if result is None or not teacher_accuracy:
        return None
    target = TARGET_SHARE * teacher_accuracy
    return next((examples for examples, reached in result["curve"] if reached >= target), None)


def _show(document: dict[str, Any], out: Path) -> None:
    best = document["models"]["teacher"]["accuracy"]
    rows = [
        (
            TITLES[name],
            row["heads"],
            "+".join(str(count) for stack, count in row["layers"].items() if stack.endswith(".self")),
            f"{row['parameters']:,}",
            f"{row['accuracy']:.1f} %",
            f"{100 * row['accuracy'] / best:.1f} %" if best else "–",
            "–"
            if name == "teacher"
            else f"{row['examples_to_90']:,}"
            if row["examples_to_90"]
            else "not reached",
            f"{1000 * row['latency_seconds']:.1f} ms",
        )
        for name, row in document["models"].items()
    ]
    print_table(
        "What was kept",
        COLUMNS,
        rows,
        f"validation questions about scenes that no model has seen; {document['question_only_accuracy']:.1f} % without "
        f"looking at the image; each student at its own best learning rate; one run each, so small differences "
        f"mean little; latency: one question, greedy",
    )
    output.print(
        f"\nThe student is an ordinary checkpoint: [bold]{out / 'amad' / 'model'}[/]\n"
        "Next:\n"
        f"  amad report {out}      one page: scores, losses, who teaches whom, where heads look\n"
        f"  amad inspect {out / 'amad' / 'recipe.yaml'}      every attention site, and who learned from whom\n"
        f"  amad distill {out / 'amad' / 'recipe.yaml'} output={out / 'longer'} training.max_steps=2000\n"
        "  amad distill recipes/easy-vqa-amad.yaml      the same on images of your own: one path to change",
        highlight=False,
        soft_wrap=True,
    )
