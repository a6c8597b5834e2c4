"""Draw what every run of a comparison reached, arm by arm, from the tables of `amad compare`.

python benchmarks/plot_study.py docs/study/figures/scenes.svg "questions, 8 heads to 2=docs/study/scenes-vqa-8to2" ...
"""

import argparse
import csv
import sys
from pathlib import Path

from figures import GREY, save, status, style, tidy
from matplotlib import pyplot

from amad.errors import DataError

COLORS = {"better": "#2f81f7", "worse": "#e0703a"}


def read(folder: Path) -> tuple[list[dict[str, str]], dict[str, list[float]]]:
    """The lines of results.csv, best first, and every figure of each arm.

    Raises:
        DataError: if the folder is none of a comparison.
    """
    try:
        with open(folder / "results.csv", encoding="utf-8", newline="") as file:
            arms = [row for row in csv.DictReader(file) if row["mean"]]
        with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
            runs = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no comparison: {error.filename} is missing. Run amad compare."
        ) from None
    if not arms:
        raise DataError(f"no run of the comparison {folder} is finished. amad compare {folder} goes on.")
    found = {row["arm"]: [float(run["value"]) for run in runs if run["arm"] == row["arm"]] for row in arms}
    return sorted(arms, key=lambda row: -float(row["mean"])), found


def draw(panels: list[tuple[str, Path]], path: Path) -> None:
    """One panel per comparison: a dot per run, a line at the mean, the colour of the verdict, dashed the teacher."""
    style()
    read_panels = [(title, *read(folder)) for title, folder in panels]
    baselines = dict.fromkeys(
        row["arm"] for _, arms, _ in read_panels for row in arms if row["verdict"] == "baseline"
    )
    most = max(len(arms) for _, arms, _ in read_panels)
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.6 * len(panels), 0.9 + 0.26 * most), squeeze=False, layout="constrained"
    )
    for panel, (title, arms, figures) in zip(axes[0], read_panels, strict=True):
        for place, row in enumerate(reversed(arms)):
            color = COLORS.get(row["verdict"], GREY)
            panel.plot(
                figures[row["arm"]], [place] * len(figures[row["arm"]]), "o", color=color, markersize=4
            )
            panel.plot([float(row["mean"])] * 2, [place - 0.3, place + 0.3], color=color, linewidth=2)
        row = arms[0]
        if row["share_of_teacher"]:
            teacher = float(row["mean"]) / float(row["share_of_teacher"])
            panel.axvline(teacher, color=GREY, linewidth=1, linestyle="--")
        panel.set_yticks(range(len(arms)), [row["arm"] for row in reversed(arms)], color=GREY)
        panel.set_title(title, color=GREY)
        tidy(panel, ("bottom",), "x")
    save(
        figure,
        "a dot per seed, a line at the mean, dashed: the teacher; "
        f"blue: better than {' or '.join(baselines)}, orange: worse (corrected interval)",
        path,
    )


def main() -> int:
    """Status of the process: 0, or 2 where there is nothing to draw."""
    parser = argparse.ArgumentParser(description="Draw comparisons.")
    parser.add_argument("out", type=Path, help="an SVG file")
    parser.add_argument("panels", nargs="+", help="TITLE=FOLDER of a comparison")
    arguments = parser.parse_args()
    panels = [(title, Path(folder)) for title, _, folder in (one.rpartition("=") for one in arguments.panels)]
    return status(lambda: draw(panels, arguments.out))


if __name__ == "__main__":
    sys.exit(main())
