"""``amad importance``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from amad.cli.distill import Json, Overrides
from amad.cli.screen import console, output, print_json, quiet_libraries, user_errors


def importance(
    teacher: Annotated[str, typer.Argument(help="Checkpoint folder.", show_default=False)],
    overrides: Overrides = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Recipe whose training examples the heads are measured on.", show_default=False),
    ] = None,
    estimate: Annotated[
        Literal["ablation", "gradient", "both"],
        typer.Option(help="Silence one head after another; or the slope of the loss, in one pass; or both."),
    ] = "both",
    examples: Annotated[int, typer.Option(min=1, help="Examples, spread evenly over the set.")] = 256,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture here: .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what every attention head of a model is worth to its task, in nats per target token."""
    quiet_libraries()
    from amad.cli.progress import counted
    from amad.errors import RecipeError
    from amad.evaluation.bench_measuring import default_device
    from amad.recipe import ModelRecipe, load_recipe
    from amad.training.importance import measure_importance
    from amad.training.parts import RunParts

    with user_errors():
        if data is None:
            raise RecipeError(
                "heads are measured on examples, and none are named. Add --data RECIPE, as in recipes/."
            )
        if plot is not None:
            _check_plot(plot)
        recipe = load_recipe(data, overrides or [])
        changes = {"model": ModelRecipe(path=teacher), "teacher": None, "student": None}
        parts = RunParts(recipe.model_copy(update=changes), with_teacher=False)
        parts.check_sight()
        parts.check_targets()
        model, sites = parts.model.to(default_device()), parts.sites["model"]
        chosen = ("ablation", "gradient") if estimate == "both" else (estimate,)
        found = {}
        for one in chosen:
            with counted(console, f"measuring by {one}", 1) as advance:
                found[one] = measure_importance(
                    model,
                    sites,
                    parts.collator,
                    parts.datasets[0],
                    estimate=one,  # type: ignore[arg-type]
                    n_examples=examples,
                    on_progress=advance,
                )
        heads = {
            name: {key: values.tolist() for key, values in measured.heads.items()}
            for name, measured in found.items()
        }
        agreement = _rank_correlation(heads) if len(heads) == 2 else None
        if plot is not None:
            _draw(plot, heads)
        n_examples = min(examples, len(parts.datasets[0]))
        loss = found[chosen[0]].loss
        if as_json:
            print_json(
                {
                    "model": teacher,
                    "examples": n_examples,
                    "loss": loss,
                    "importance": {
                        name: [
                            {"stack": key.stack, "layer": key.layer, "heads": values}
                            for key, values in rows.items()
                        ]
                        for name, rows in heads.items()
                    },
                    "rank_correlation": agreement,
                    "plot": None if plot is None else str(plot),
                }
            )
            return
        for name, rows in heads.items():
            _print_heat(_TITLES[name], rows)
        output.print(
            f"loss {loss:.4f} nats per target token, {n_examples} examples", style="dim", highlight=False
        )
        if agreement is not None:
            output.print(
                f"rank correlation of the two over all heads (Spearman): {agreement:.2f}",
                style="dim",
                highlight=False,
            )
        if plot is not None:
            output.print(f"picture in {plot}", style="dim", highlight=False)


_TITLES = {
    "ablation": "Rise of the loss without a head, nats per target token",
    "gradient": "Slope of the loss in a head's output, nats per target token",
}

Rows = Mapping[Any, Sequence[float]]


def _print_heat(title: str, rows: Rows) -> None:
    """One row per site, one cell per head; the darker, the more it matters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    most = max(max(values) for values in rows.values())
    widest = max(len(values) for values in rows.values())
    table = Table(title=title, title_justify="left")
    table.add_column("site")
    for head in range(widest):
        table.add_column(str(head), justify="right")
    table.add_column("layer", justify="right")
    for key, values in rows.items():
        cells = [Text(f"{value:.3f}", style=_shade(value, most)) for value in values]
        whole = sum(max(value, 0.0) for value in values)
        table.add_row(str(key), *cells, *[""] * (widest - len(values)), f"{whole:.3f}")
    screen = output if output.is_terminal else Console(width=400)
    screen.print(table)


def _shade(value: float, most: float) -> str:
    """From nothing to full colour, by the square root: most heads matter little."""
    if value <= 0 or most <= 0:
        return "dim"
    share = (value / most) ** 0.5
    red, green, blue = (round(255 + share * (full - 255)) for full in (0, 92, 197))
    return f"{'white' if share > 0.55 else 'black'} on rgb({red},{green},{blue})"


def _rank_correlation(heads: Mapping[str, Rows]) -> float | None:
    """Spearman's, over all heads; None where it is not defined."""
    import math

    from scipy.stats import spearmanr

    one, other = ([value for values in rows.values() for value in values] for rows in heads.values())
    correlation = float(spearmanr(one, other).statistic) if len(one) > 1 else math.nan
    return None if math.isnan(correlation) else correlation


def _check_plot(path: Path) -> None:
    """Refuse before anything is computed.

    Raises:
        RecipeError: for an unknown kind of picture, a folder that is not there, or without matplotlib.
    """
    import importlib.util

    from amad.errors import RecipeError

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RecipeError(
            f"--plot {path}: a picture is .png, .svg or .pdf, not {path.suffix or 'without ending'}."
        )
    if not path.parent.is_dir():
        raise RecipeError(f"--plot {path}: there is no folder {path.parent}. Make it first.")
    if importlib.util.find_spec("matplotlib") is None:
        raise RecipeError("--plot needs matplotlib, which is not installed. Run: pip install matplotlib.")


def _draw(path: Path, heads: Mapping[str, Rows]) -> None:
    """One grid per estimate: sites down, heads across."""
    import matplotlib as mpl

    mpl.use("agg")
    import numpy as np
    from matplotlib import pyplot

    rows = next(iter(heads.values()))
    widest = max(len(values) for values in rows.values())
    figure, axes = pyplot.subplots(
        1,
        len(heads),
        figsize=(1.6 + (0.5 * widest + 1.2) * len(heads), 1.4 + 0.32 * len(rows)),
        squeeze=False,
    )
    for axis, (name, found) in zip(axes[0], heads.items(), strict=True):
        grid = np.full((len(found), widest), np.nan)
        for row, values in zip(grid, found.values(), strict=True):
            row[: len(values)] = values
        image = axis.imshow(np.clip(grid, 0, None), cmap="Blues", aspect="auto")
        axis.set_title(name)
        axis.set_xlabel("head")
        axis.set_xticks(range(widest))
        axis.set_yticks(range(len(found)), [str(key) for key in found])
        figure.colorbar(image, ax=axis, label="nats per target token")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
