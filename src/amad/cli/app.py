"""The ``amad`` command."""

import os

# Threads that wait actively starve each other on shared cores; OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from amad import __version__
from amad.cli import bench, compare, data, demo, distill, evaluate, importance, inspect, report, score
from amad.cli.screen import output

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Distil a large vision-language transformer into a small one: every teacher head teaches every student "
    "head, in proportion to how alike their attention maps are.",
)
app.command("demo")(demo.demo)
app.command("train")(distill.train)
app.command("distill")(distill.distill)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("inspect")(inspect.inspect)
app.command("importance")(importance.importance)
app.command("report")(report.report)
app.add_typer(bench.app, name="bench", help="Measure what the attention losses cost here.")
app.add_typer(data.app, name="data", help="Check data, or make some.")
app.add_typer(score.app, name="score", help="Score result files with the official metrics.")


def _version(value: bool) -> None:
    if value:
        output.print(f"amad {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    app()
