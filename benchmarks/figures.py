"""What all figures have in common: readable on white and on near black, the ground transparent, text as text."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console

from amad.errors import AmadError

GREY = "#7d8590"


def style() -> None:
    """Before a figure is made: the same numbers give the same file."""
    mpl.rcParams.update({"svg.hashsalt": "amad", "svg.fonttype": "none", "font.size": 9, "text.color": GREY})


def tidy(panel: Axes, sides: tuple[str, ...], grid: str = "both") -> None:
    """A panel with the axes of these sides alone."""
    panel.tick_params(colors=GREY)
    panel.grid(axis=grid, color=GREY, alpha=0.25, linewidth=0.6)
    panel.patch.set_alpha(0)
    for side, spine in panel.spines.items():
        spine.set_visible(side in sides)
        spine.set_color(GREY)


def save(figure: Figure, note: str, path: Path) -> None:
    """The figure with a note below it."""
    figure.supxlabel(note, fontsize=7, color=GREY)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def status(work: Callable[[], None]) -> int:
    """Status of the process: 0, or 2 with one line where there is nothing to draw."""
    try:
        work()
    except AmadError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    return 0
