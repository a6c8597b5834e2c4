"""The ledger: one line per operator and shape that was measured, and how far it is from what it should reach."""

import csv
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amad.errors import DataError
from amad.evaluation.bench_ops import CONTENDERS, OpsCase

ROOT = Path(__file__).resolve().parents[1]
LEDGER = Path(__file__).with_name("results.csv")

MEASURED = tuple(f"src/amad/{room}" for room in ("capture", "evaluation", "losses", "ops"))
"""The code that a line is about."""

SHAPE = ("batch", "teacher_heads", "student_heads", "width", "queries", "keys")
RATIOS = ("ours/sdpa", "naive/ours", "compile/ours", "naive/ours memory")
KEY = ("commit", "machine", "allocator", "device", "threads", "dtype", "op", *SHAPE)
COLUMNS = (
    "date",
    "commit",
    "machine",
    "allocator",
    "device",
    "torch",
    "threads",
    "dtype",
    "op",
    *SHAPE,
    "clock",
    "rounds",
    *(f"seconds {name}" for name in CONTENDERS),
    *(f"bytes {name}" for name in CONTENDERS),
    *RATIOS,
    "floor ours/sdpa",
    "error value",
    "error gradient",
    "targets",
    "misses",
    "not measured",
)

MOST_OVER_SDPA = {"mse": 1.8, "kl": 3.0, "token": 2.0}


def targets(case: OpsCase) -> dict[str, tuple[str, float]]:
    """What each ratio should reach at a shape: at most (``<=``) or at least (``>=``) so much."""
    length = min(case.queries, case.keys)
    wanted = {
        "ours/sdpa": ("<=", MOST_OVER_SDPA[case.op]),
        "naive/ours": (">=", 3.0 if length >= 2048 else 2.0 if length >= 512 else 1.0),
        "compile/ours": (">=", 1.0),
    }
    if length >= 512:
        wanted["naive/ours memory"] = (">=", 25.0 if length >= 2048 else 8.0)
    return wanted


def misses(case: OpsCase, ratios: Mapping[str, float | None]) -> list[str]:
    """The targets that are missed, and by how much of the target; a ratio that was not measured misses none."""
    missed = []
    for name, (sense, target) in targets(case).items():
        found = ratios[name]
        if found is not None and (found > target if sense == "<=" else found < target):
            missed.append(f"{name} by {100 * abs(found - target) / target:.1f} %")
    return missed


def row_of(document: Mapping[str, Any], commit: str, date: str) -> dict[str, str]:
    """The line of one document of :func:`amad.evaluation.bench_ops.bench_ops`."""
    case = OpsCase(**document["case"])
    ratios = document["ratios"]
    values: dict[str, Any] = {
        "date": date,
        "commit": commit,
        "machine": machine_name(document["machine"]),
        "allocator": document["machine"]["allocator"],
        "torch": document["versions"]["torch"],
        **document["case"],
        "clock": document["clock"],
        "rounds": document["repeats"],
        **{f"seconds {name}": _rounded(document["median_seconds"][name]) for name in CONTENDERS},
        **{f"bytes {name}": document["peak_extra_bytes"][name] for name in CONTENDERS},
        **{name: _rounded(ratios[name]) for name in RATIOS},
        "floor ours/sdpa": _rounded(document["floors"]["ours/sdpa"]),
        "error value": f"{document['errors']['value']:.1e}",
        "error gradient": f"{document['errors']['gradient']:.1e}",
        "targets": "; ".join(f"{name} {sense} {most:g}" for name, (sense, most) in targets(case).items()),
        "misses": "; ".join(misses(case, ratios)) or "none",
        "not measured": "; ".join(f"{name}: {why}" for name, why in document["missing"].items()),
    }
    return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}


def machine_name(machine: Mapping[str, Any]) -> str:
    """The GPU, or the processor and its cores."""
    return machine.get("gpu") or f"{machine['cpu']}, {machine['cpu_count']} cores"


def read(path: Path = LEDGER) -> list[dict[str, str]]:
    """The lines of a ledger; none where there is no file yet.

    Raises:
        DataError: if its columns are not :data:`COLUMNS`.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path.name} has other columns than {', '.join(COLUMNS)}. Name another ledger.")
        return list(reader)


def append(row: Mapping[str, str], path: Path = LEDGER) -> None:
    """Add one line. Lines that are there are never changed."""
    is_new = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def known(rows: Iterable[Mapping[str, str]]) -> set[tuple[str, ...]]:
    """What was measured, by :data:`KEY`."""
    return {tuple(row[name] for name in KEY) for row in rows}


def measured_commit() -> str:
    """The commit that last changed :data:`MEASURED`; with ``+`` if files there differ from it.

    Commits of anything else, the ledger among it, leave it as it is.

    Raises:
        DataError: outside of a checkout.
    """
    commit = _git("log", "-1", "--format=%h", "--abbrev=12", "--", *MEASURED)
    return commit + ("+" if _git("status", "--porcelain", "--", *MEASURED) else "")


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(f"the ledger names commits, and git says: {error}. Run it in a checkout.") from error
    return answer.stdout.strip()


def _rounded(number: float | None) -> str | None:
    return None if number is None else f"{number:.4g}"
