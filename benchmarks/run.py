"""Measure the attention operators at the shapes that matter and add what was found to the ledger.

    python benchmarks/run.py --only '*-n512-*'

A shape that the ledger has for this commit, machine, device, dtype and number of threads is skipped, so that an
interrupted run goes on where it was.
"""

import argparse
import datetime
import fnmatch
import os
import sys
from collections.abc import Iterable
from pathlib import Path

# Threads that wait actively starve each other on shared cores; OpenMP reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ledger import KEY, LEDGER, MEASURED, append, known, machine_name, measured_commit, misses, read, row_of
from rich.console import Console

from amad.errors import AmadError, RecipeError
from amad.evaluation.bench_measuring import default_device, surroundings
from amad.evaluation.bench_ops import OPS, OpsCase, bench_ops

SHAPES = (
    (8, 12, 12, 64, 128),
    (32, 12, 12, 64, 56),
    (8, 12, 12, 64, 197),
    (8, 16, 3, 64, 197),
    (1, 12, 12, 64, 512),
    (1, 12, 12, 64, 1024),
    (1, 12, 12, 64, 2048),
    (1, 12, 12, 64, 4096),
    *(
        (1, *heads, length)
        for heads in ((16, 12, 64), (12, 4, 64), (32, 16, 128))
        for length in (512, 1024, 2048)
    ),
)
"""Batch, heads of teacher and student, width, length. The second is VQA as the paper has it: 20 words, 36 regions."""

CELLS_PER_RUN = 600_000_000
"""So many numbers of maps are measured per contender: small shapes have more rounds."""


def cases(threads: int, dtype: str, device: str) -> list[OpsCase]:
    """Every shape with every operator."""
    return [
        OpsCase(op, batch, teacher, student, width, length, length, threads, dtype, device)
        for batch, teacher, student, width, length in SHAPES
        for op in OPS
    ]


def name_of(case: OpsCase) -> str:
    """What ``--only`` matches: ``kl-b1-12to12-d64-n512-m512``."""
    heads = f"{case.teacher_heads}to{case.student_heads}"
    return f"{case.op}-b{case.batch}-{heads}-d{case.width}-n{case.queries}-m{case.keys}"


def n_rounds(case: OpsCase) -> int:
    """Between 5 and 25."""
    cells = case.batch * case.queries * case.keys * (case.teacher_heads + case.student_heads)
    return min(max(round(CELLS_PER_RUN / cells), 5), 25)


def measure(chosen: Iterable[OpsCase], path: Path, console: Console) -> int:
    """Measure what the ledger does not have yet; the number of cases that were refused.

    Raises:
        RecipeError: if what is measured differs from its commit and the ledger is the project's.
        DataError: as :func:`ledger.read` and :func:`ledger.measured_commit`.
    """
    n_refused = 0
    for case in chosen:
        commit = measured_commit()
        if commit.endswith("+") and path.resolve() == LEDGER:
            raise RecipeError(
                f"{', '.join(MEASURED)} differ from commit {commit[:-1]}, and a line of the ledger names "
                "the code that it is about. Commit first, or try it with --ledger FILE."
            )
        machine = surroundings(case.device)["machine"]
        names = {"machine": machine_name(machine), "allocator": machine["allocator"]}
        values = {**vars(case), **names, "commit": commit}
        if not commit.endswith("+") and tuple(str(values[name]) for name in KEY) in known(read(path)):
            console.print(f"{name_of(case)}: known", highlight=False)
            continue
        try:
            document = bench_ops(case, n_rounds(case))
        except AmadError as error:
            n_refused += 1
            console.print(f"{name_of(case)}: {error}", highlight=False, soft_wrap=True)
            continue
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        append(row_of(document, commit, date), path)
        ratios = [f"{name} {ratio:.2f}" for name, ratio in document["ratios"].items() if ratio is not None]
        missed = "; ".join(misses(case, document["ratios"])) or "nothing"
        console.print(
            f"{name_of(case)}: {', '.join(ratios)}; misses {missed}", highlight=False, soft_wrap=True
        )
    return n_refused


def main() -> int:
    """Status of the process: 0, or 1 where a case was refused, or 2 where nothing could be run."""
    parser = argparse.ArgumentParser(description="Measure the attention operators for the ledger.")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to run, as 'kl-*-n512-*'")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--device", default=default_device(), help="cpu or cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ledger", type=Path, default=LEDGER, help="another file to add to")
    arguments = parser.parse_args()
    console = Console()
    try:
        everything = cases(arguments.threads, arguments.dtype, arguments.device)
        chosen = [case for case in everything if fnmatch.fnmatch(name_of(case), arguments.only)]
        if not chosen:
            raise RecipeError(f"no case is named like {arguments.only!r}. See --list.")
        if arguments.list:
            console.print("\n".join(map(name_of, chosen)), highlight=False)
            return 0
        return int(measure(chosen, arguments.ledger, console) > 0)
    except AmadError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
