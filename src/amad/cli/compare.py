"""``amad compare``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amad.cli.distill import Json, Overrides
from amad.cli.screen import (
    check_alone,
    console,
    output,
    print_json,
    print_table,
    quiet_libraries,
    user_errors,
)

if TYPE_CHECKING:
    from amad.evaluation.compare_jobs import Job, Remaining
    from amad.evaluation.compare_plan import Comparison

METHODS = "none,logits,amad"
KNOWN = (
    "none, logits, logits-reverse, logits-jsd, hidden, hidden-cosine, tinybert, one_to_one, one_to_one-mse, "
    "one_to_one-scores, mean, mean-mse, nearest, nearest-mse, assigned, assigned-mse, head_mean, learned, learned-mse, "
    "relations, squeezed, amad, amad-mse, amad-projected, amad-token, amad-sharp, amad-important and "
    "amad-important-hidden"
)


def compare(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="A recipe with a teacher and a student, or the folder of a comparison to go on with.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help=f"Methods, with commas between; {METHODS} when there is no --arm. There are {KNOWN}.",
            show_default=False,
        ),
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(
            help="One more to compare, 'LABEL: METHOD key=value ...': 'sharp: amad "
            "objective.attention.temperature=0.1'. May be given several times.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Runs of each: seeds 0, 1, 2 ...; 3 when absent.", show_default=False),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Label to compare with; that of the comparison that is there, or the first, when absent.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the comparison; the recipe's output with -compare when absent."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="Values to choose from, KEY=VALUE,VALUE: learning_rate=1e-3,2e-3, or weight=0.3,1,3 for that of "
            "each method's own term. Every combination is tried for each method that it applies to. May be given "
            "several times.",
            show_default=False,
        ),
    ] = None,
    search_seed: Annotated[
        int | None,
        typer.Option(
            min=0, help="Seed of the search, not one that is reported; 100 when absent.", show_default=False
        ),
    ] = None,
    report: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value that names other data to report on than what was chosen on, such as "
            "data.validation.split=test. May be given several times.",
            show_default=False,
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Runs at a time, each on the GPU with the fewest of them; 0 makes none and shows what is finished.",
        ),
    ] = 1,
    as_list: Annotated[
        bool,
        typer.Option(
            "--list", help="Print the commands that can be run now, a line each, for a launcher of your own."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare methods of distillation: same start, data, order, budget and teacher, several seeds, one table.

    With {seed} in the path of the teacher, as in teacher=runs/teacher-{seed}/model, each seed has a teacher of its
    own, and intervals are over teachers, too.

    Every run is an ordinary one, in a process of its own. The same command, or amad compare FOLDER, goes on where
    an earlier one stopped.
    """
    quiet_libraries()
    from amad.cli.compare_progress import ComparisonProgress
    from amad.evaluation.compare_described import read_comparison, write_comparison
    from amad.evaluation.compare_files import write_results
    from amad.evaluation.compare_jobs import remaining, run_jobs
    from amad.evaluation.compare_results import check_teachers, summarise

    with user_errors():
        check_alone("with --jobs for several runs at a time, or launch what --list prints")
        given = {
            "key=value": overrides,
            "--methods": methods,
            "--arm": arm,
            "--seeds": seeds,
            "--baseline": baseline,
            "--out": out,
            "--search": search,
            "--search-seed": search_seed,
            "--report": report,
        }
        if recipe.is_dir():
            comparison, folder = _going_on(recipe, given), recipe
        else:
            comparison, folder = _described(recipe, given)
            _check_arguments(comparison)
            write_comparison(comparison, folder)
        left = remaining(comparison, folder)
        if left.ready and (jobs or as_list):
            check_teachers(comparison, folder)
        if as_list:
            _print_lines(left, as_json)
            return
        failed: list[Job] = []
        if jobs:
            shown = ComparisonProgress(comparison, folder, jobs)
            try:
                with shown.progress:
                    run_jobs(shown.ready, jobs, on_end=shown.ended, on_tick=shown.tick)
            except KeyboardInterrupt:
                console.print(
                    f"interrupted. amad compare {folder} goes on.",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
                raise typer.Exit(130) from None
            failed = shown.failed
        # Another process may have let it grow.
        comparison = read_comparison(folder)
        left = remaining(comparison, folder)
        document = summarise(comparison, folder, left)
        write_results(document, folder, comparison.model_dump(mode="json"))
        if as_json:
            print_json({"out": str(folder), "failed": [job.name for job in failed], **document})
        else:
            _print_results(document, folder, left, failed)
        if failed:
            raise typer.Exit(1)


def _going_on(folder: Path, given: dict[str, Any]) -> "Comparison":
    from amad.errors import RecipeError
    from amad.evaluation.compare_described import read_comparison

    comparison = read_comparison(folder)
    for name, value in given.items():
        if value is not None and value != []:
            raise RecipeError(
                f"{folder} is a comparison that is described already, so {name} has no place. Give the recipe and "
                f"everything else again to add arms or seeds, or the folder alone to go on."
            )
    return comparison


def _described(path: Path, given: dict[str, Any]) -> tuple["Comparison", Path]:
    """The comparison that the command line describes, and its folder."""
    from amad.evaluation.compare_described import check_overrides, parse_arms, parse_search
    from amad.evaluation.compare_plan import Comparison
    from amad.recipe import load_recipe

    overrides, arms, report = (given[name] or [] for name in ("key=value", "--arm", "--report"))
    check_overrides([*overrides, *report])
    recipe = load_recipe(path, overrides)
    folder = given["--out"] or Path(f"{recipe.output}-compare")
    methods = given["--methods"] if given["--methods"] or arms else METHODS
    chosen = parse_arms(methods, arms)
    seed = given["--search-seed"]
    comparison = Comparison(
        recipe=recipe.model_copy(update={"seed": 0, "output": str(folder)}),
        arms=chosen,
        n_seeds=given["--seeds"] or 3,
        baseline=given["--baseline"] or _baseline_of(folder) or (chosen[0].label if chosen else ""),
        search=parse_search(given["--search"] or []),
        search_seed=100 if seed is None else seed,
        report=tuple(report),
    )
    return comparison, folder


def _baseline_of(folder: Path) -> str | None:
    """The baseline of the comparison that is there and may grow now."""
    from amad.evaluation.compare_described import COMPARISON_FILE, read_comparison

    return read_comparison(folder).baseline if (folder / COMPARISON_FILE).exists() else None


def _check_arguments(comparison: "Comparison") -> None:
    """Refuse before the first run what every run would refuse; no weights and no data are read."""
    from amad.errors import RecipeError
    from amad.models.load import load_empty_model
    from amad.training.run import TrainingRun

    searches = any(len(comparison.settings(arm)) > 1 for arm in comparison.arms)
    seeds = [*range(comparison.n_seeds), *([comparison.search_seed] if searches else [])]
    for teacher in dict.fromkeys(map(comparison.teacher, seeds)):
        load_empty_model(teacher)
    for arm in comparison.arms:
        for setting in comparison.settings(arm):
            run = comparison.runs(Path(), arm, setting)[0]
            try:
                TrainingRun(run.recipe, with_teacher=run.distils, console=console)
            except RecipeError as error:
                raise RecipeError(f"arm {arm.label!r}: {error}") from None


def _print_lines(left: "Remaining", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "ready": [job.line for job in left.ready],
                "waiting": len(left.waiting),
                "running": list(left.running),
            }
        )
        return
    for job in left.ready:
        # A line for a shell is never folded.
        output.print(job.line, markup=False, highlight=False, soft_wrap=True)
    if left.waiting:
        console.print(
            f"{len(left.waiting)} more runs can be listed when the trials of their arms are finished.",
            highlight=False,
        )


def _print_results(
    document: dict[str, Any], folder: Path, left: "Remaining", failed: Sequence["Job"]
) -> None:
    from amad.evaluation.compare_files import RESULTS_CSV, RESULTS_MD, RUNS_CSV, columns, rows

    print_table("Comparison", columns(document), rows(document))
    for note in document["notes"]:
        output.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)
    output.print(
        f"\nWritten: {folder / RESULTS_MD}, {RESULTS_CSV}, {RUNS_CSV}, records.jsonl",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if document["unfinished"] or failed:
        what = f"; failed just now: {', '.join(job.name for job in failed)}" if failed else ""
        console.print(
            f"runs not finished: {document['unfinished']}{what}. amad compare {folder} goes on.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
