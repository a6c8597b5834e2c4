"""The files in which a comparison says what it found: Markdown, CSV and records."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from amad.data.paths import replaced, write_whole
from amad.records import RunRecords

RESULTS_MD, RESULTS_CSV, RUNS_CSV, RECORDS = "results.md", "results.csv", "runs.csv", "records.jsonl"

_DASH = "–"


def write_results(document: Mapping[str, Any], folder: Path, comparison: Mapping[str, Any]) -> None:
    """Write ``results.md``, ``results.csv`` (a line per arm), ``runs.csv`` (a line per run) and ``records.jsonl``.

    Args:
        document: From ``summarise``.
        folder: That of the comparison.
        comparison: What was compared, as plain values.
    """
    write_whole(folder / RESULTS_MD, markdown(document))
    write_whole(folder / RESULTS_CSV, _csv([_flat_arm(arm) for arm in document["arms"]]))
    runs = [{key: run[key] for key in _RUN_COLUMNS} for run in document["runs"]]
    write_whole(folder / RUNS_CSV, _csv(runs, _RUN_COLUMNS))
    with replaced(folder / RECORDS) as temporary, RunRecords(temporary) as records:
        records.write("recipe", comparison=comparison)
        for run in document["runs"]:
            records.write("metrics", figure=document["figure"], **run)
        whole = {key: value for key, value in document.items() if key not in ("arms", "runs")}
        records.write("comparison", **whole, arms=document["arms"])


def columns(document: Mapping[str, Any]) -> tuple[str, ...]:
    """Headings of the table."""
    return (
        "arm",
        "seeds",
        document["figure"],
        "share of teacher",
        f"difference from {document['baseline']}",
        "verdict",
        "examples to 90 %",
        "seconds",
    )


def rows(document: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table: one row per arm, and one of the teacher."""
    decimals = document["decimals"]
    teacher = document["teacher"]
    table: list[tuple[str, ...]] = []
    if teacher is not None:
        table.append(("teacher", "", _number(teacher, decimals), "", "", "", "", ""))
    for arm in document["arms"]:
        spread = "" if arm["deviation"] is None else f" ± {arm['deviation']:.{decimals}f}"
        n_runs = len(arm["figures"])
        table.append(
            (
                arm["label"],
                f"{n_runs}" if n_runs == document["n_seeds"] else f"{n_runs} of {document['n_seeds']}",
                _number(arm["mean"], decimals) + spread,
                _DASH if arm["share_of_teacher"] is None else f"{100 * arm['share_of_teacher']:.1f} %",
                _difference(arm["difference"], decimals),
                arm["verdict"],
                _reached(arm),
                _DASH if arm["seconds"] is None else f"{arm['seconds']:,.0f}",
            )
        )
    return table


def markdown(document: Mapping[str, Any]) -> str:
    """The table, every run, the search and the notes."""
    decimals, n_seeds = document["decimals"], document["n_seeds"]
    parts = ["# Comparison", ""]
    if document["unfinished"]:
        parts += [f"**{document['unfinished']} runs are not finished**, so some verdicts are not in.", ""]
    parts += _table(columns(document), rows(document))
    parts += ["", *(f"- {note}" for note in document["notes"]), ""]
    parts += ["## Every run", ""]
    seeds = [str(seed) for seed in range(n_seeds)]
    parts += _table(
        ("arm", *(f"seed {seed}" for seed in seeds)),
        [
            (arm["label"], *(_number(arm["figures"].get(seed), decimals) for seed in seeds))
            for arm in document["arms"]
        ],
    )
    changed = [arm for arm in document["arms"] if arm["overrides"] or arm["label"] != arm["method"]]
    if changed:
        parts += ["", "## Arms", ""]
        parts += _table(
            ("arm", "method", "with"),
            [(arm["label"], arm["method"], _code(arm["overrides"])) for arm in changed],
        )
    if any(arm["trials"] for arm in document["arms"]):
        parts += ["", "## Search", ""]
        parts += _table(
            ("arm", "setting", f"{document['figure']}, validation", "chosen"),
            [
                (
                    arm["label"],
                    _code(trial["setting"]),
                    _number(trial["validated"], decimals),
                    "yes" if trial["setting"] == arm["setting"] else "",
                )
                for arm in document["arms"]
                for trial in arm["trials"]
            ],
        )
    return "\n".join([*parts, ""])


_RUN_COLUMNS = ("arm", "seed", "value", "validated", "examples", "examples_to_90", "seconds", "folder")


def _flat_arm(arm: Mapping[str, Any]) -> dict[str, Any]:
    difference = arm["difference"] or dict.fromkeys(("mean", "deviation", "low", "high"))
    return {
        "arm": arm["label"],
        "method": arm["method"],
        "overrides": " ".join(arm["overrides"]),
        "setting": "" if arm["setting"] is None else " ".join(arm["setting"]),
        "trials": len(arm["trials"]),
        "runs": len(arm["figures"]),
        "mean": arm["mean"],
        "deviation": arm["deviation"],
        "share_of_teacher": arm["share_of_teacher"],
        "difference": difference["mean"],
        "difference_deviation": difference["deviation"],
        "low": difference["low"],
        "high": difference["high"],
        "verdict": arm["verdict"],
        "examples_to_90": arm["examples_to_90"],
        "n_reached": arm["n_reached"],
        "seconds": arm["seconds"],
    }


def _csv(lines: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, names or list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    return [line(headings), "|" + "---|" * len(headings), *map(line, lines)]


def _number(value: float | None, decimals: int) -> str:
    return _DASH if value is None else f"{value:.{decimals}f}"


def _difference(difference: Mapping[str, Any] | None, decimals: int) -> str:
    if difference is None:
        return _DASH
    mean = f"{difference['mean']:+.{decimals}f}"
    if difference["low"] is None:
        return mean
    if difference["deviation"] == 0 and difference["mean"]:
        return f"{mean} in every seed"
    return f"{mean} ({difference['low']:+.{decimals}f} to {difference['high']:+.{decimals}f})"


def _reached(arm: Mapping[str, Any]) -> str:
    if not arm["n_targets"]:
        return _DASH
    if arm["n_reached"] == 0:
        return "not reached"
    every = arm["n_reached"] == arm["n_targets"]
    count = "" if every else f"{arm['n_reached']} of {arm['n_targets']} reached"
    if arm["examples_to_90"] is None:
        return count
    return f"{arm['examples_to_90']:,}" + (f" ({count})" if count else "")


def _code(overrides: Sequence[str]) -> str:
    return " ".join(f"`{override}`" for override in overrides)
