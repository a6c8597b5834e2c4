"""Draw time and memory against length, from the newest lines of the ledger, for the README.

python benchmarks/plot.py
"""

import argparse
import sys
from pathlib import Path

from figures import GREY, save, status, style, tidy
from ledger import LEDGER, ROOT, read
from matplotlib import pyplot

from amad.errors import DataError
from amad.evaluation.bench_ops import CONTENDERS, OPS

FIGURES = ROOT / "docs" / "figures"
PLOTTED = {
    "allocator": "default",
    "device": "cpu",
    "threads": "1",
    "dtype": "float32",
    "batch": "1",
    "width": "64",
}
HEADS = "12"

TITLES = {"ours": "amad", "naive": "maps", "compile": "maps, compiled", "sdpa": "attention itself"}
STYLES = {
    "ours": {"color": "#2f81f7", "marker": "o", "linewidth": 2.2},
    "naive": {"color": "#e0703a", "marker": "s", "linewidth": 1.4},
    "compile": {"color": "#b08800", "marker": "^", "linewidth": 1.4},
    "sdpa": {"color": "#7d8590", "marker": "D", "linewidth": 1.4, "linestyle": "--"},
}
QUANTITIES = {
    "time": ("seconds", "seconds, forward and backward", 1.0),
    "memory": ("bytes", "peak MiB", 2.0**20),
}


def newest(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Square maps of 12 heads from 12, one line per operator and length, all of the machine of the newest line.

    Raises:
        DataError: if there is none.
    """
    wanted = {**PLOTTED, "teacher_heads": HEADS, "student_heads": HEADS}
    fitting = [
        row
        for row in sorted(rows, key=lambda row: row["date"])
        if row["queries"] == row["keys"] and all(row[name] == value for name, value in wanted.items())
    ]
    if not fitting:
        raise DataError(
            "the ledger has no line to draw: none of one sample and 12 heads. Run benchmarks/run.py."
        )
    machine = fitting[-1]["machine"]
    latest = {(row["op"], int(row["queries"])): row for row in fitting if row["machine"] == machine}
    return [latest[key] for key in sorted(latest)]


def draw(rows: list[dict[str, str]], quantity: str, path: Path) -> None:
    """One panel per operator."""
    column, label, unit = QUANTITIES[quantity]
    style()
    figure, panels = pyplot.subplots(
        1, len(OPS), figsize=(9, 3.3), sharex=True, sharey=True, layout="constrained"
    )
    lengths = sorted({int(row["queries"]) for row in rows})
    for panel, op in zip(panels, OPS, strict=True):
        for name in CONTENDERS:
            points = [
                (int(row["queries"]), float(row[f"{column} {name}"]) / unit)
                for row in rows
                if row["op"] == op and row[f"{column} {name}"]
            ]
            if points:
                panel.plot(*zip(*points, strict=True), label=TITLES[name], markersize=4, **STYLES[name])
        panel.set_title(op, color=GREY)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths])
        panel.minorticks_off()
        panel.set_xlabel("tokens", color=GREY)
        tidy(panel, ("left", "bottom"))
    panels[0].set_ylabel(label, color=GREY)
    handles, titles = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, titles, loc="outside upper center", ncols=len(CONTENDERS), frameon=False, labelcolor=GREY
    )
    save(
        figure,
        f"one pair of layers, 12 heads teach 12 of width 64, one sample, float32, one thread; {rows[-1]['machine']}, "
        f"torch {rows[-1]['torch']}, commits {', '.join(sorted({row['commit'][:7] for row in rows}))}",
        path,
    )


def main() -> int:
    """Status of the process: 0, or 2 where there is nothing to draw."""
    parser = argparse.ArgumentParser(description="Draw the ledger.")
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder")
    arguments = parser.parse_args()

    def work() -> None:
        rows = newest(read(arguments.ledger))
        for quantity in QUANTITIES:
            draw(rows, quantity, arguments.out / f"ops-{quantity}.svg")

    return status(work)


if __name__ == "__main__":
    sys.exit(main())
