"""Runs of ``amad compare``: what their comparison calls them, and what it found of them."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from amad.errors import DataError

COMPARISON_FILE = "compare.yaml"
RUNS_FOLDER = "runs"

_METRICS = "results.metrics.json"
# Of the teacher on the data that is reported on, and on what its students are scored on while they train.
_TEACHER, _TEACHER_WHILE_TRAINING = "teacher", "teacher-on-validation"


class Arm(NamedTuple):
    """Where a run lies in a comparison.

    Attributes:
        comparison: The folder of the comparison.
        label: What the comparison calls the arm.
        is_baseline: Whether the others are compared with it.
        score: The run's figure on what is reported on; None before ``amad evaluate`` found it.
        teacher: That of the teacher of its seed.
        teacher_while_training: The teacher's on what its students are scored on while they train.
    """

    comparison: Path
    label: str
    is_baseline: bool
    score: float | None
    teacher: float | None
    teacher_while_training: float | None


def find_arm(folder: Path, figure: str) -> Arm | None:
    """The arm that a run is of; None where its folder is not ``runs/LABEL/seed-N`` of a comparison.

    Args:
        folder: Of the run.
        figure: Name of the main figure.

    Raises:
        DataError: if a file of the comparison cannot be read.
    """
    folder = folder.resolve()
    if len(folder.parents) < 3 or folder.parents[1].name != RUNS_FOLDER:
        return None
    comparison = folder.parents[2]
    described = _described(comparison / COMPARISON_FILE)
    label = folder.parent.name
    if described is None or label not in described[0]:
        return None

    def teacher(name: str) -> float | None:
        own = _figure(comparison / name / folder.name / _METRICS, figure)
        return _figure(comparison / name / _METRICS, figure) if own is None else own

    return Arm(
        comparison,
        label,
        label == described[1],
        _figure(folder / _METRICS, figure),
        teacher(_TEACHER),
        teacher(_TEACHER_WHILE_TRAINING),
    )


def runs_of_comparison(folder: Path, records: str) -> list[Path] | None:
    """The folders of the runs of a comparison that began, baseline first, then in its order; None if it is none.

    Args:
        folder: Of the comparison.
        records: Name of the file that a run has when it began.

    Raises:
        DataError: if the comparison cannot be read, or none of its runs began.
    """
    described = _described(folder / COMPARISON_FILE)
    if described is None:
        return None
    labels, baseline = described
    found = [
        file.parent
        for label in sorted(labels, key=lambda label: label != baseline)
        for file in sorted((folder / RUNS_FOLDER / label).glob(f"seed-*/{records}"), key=_seed)
    ]
    if not found:
        raise DataError(f"no run of the comparison {folder} has begun. amad compare {folder} makes them.")
    return found


def _seed(file: Path) -> tuple[int, str]:
    number = file.parent.name.removeprefix("seed-")
    return int(number) if number.isdigit() else 0, number


@lru_cache(maxsize=8)
def _described(path: Path) -> tuple[tuple[str, ...], str] | None:
    """Labels of the arms, and the baseline's; None without such a file."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(str(arm["label"]) for arm in tree["arms"]), str(tree["baseline"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{path} is not what amad compare writes ({error}). Restore it.") from None


def _figure(path: Path, figure: str) -> float | None:
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        value = document[figure]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not what amad evaluate writes ({error}). Remove it, and let amad compare make it again."
        ) from None
    return float(value) if isinstance(value, int | float) else None
