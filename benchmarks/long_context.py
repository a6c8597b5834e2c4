"""AMAD where no map fits: one pair of layers of 16,384 tokens, 12 heads teach 6, on a CPU.

    python benchmarks/long_context.py

The maps of these two layers would take 18 GiB in float32, before anything is computed with them. Forward and
backward are timed; their peak memory, taken in a process of its own, must stay under 2 GiB; value and whole
gradients are compared with float64, computed exactly and in blocks of rows without ``amad.ops``, which takes minutes.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console

from amad.errors import AmadError
from amad.evaluation.bench_measuring import Progress, clock_for, in_own_process, silent, use_threads
from amad.evaluation.bench_ops import OpsCase, check_correct, make_inputs, measure_peak, ours_loss

MOST_BYTES = 2 * 2**30


def seconds_of(case: OpsCase, on_progress: Progress = silent) -> tuple[float, float]:
    """Times of forward and backward, after a run at a tiny shape."""
    use_threads(case.threads)
    read = time.process_time if clock_for(case.device, case.threads) == "process" else time.perf_counter
    times = []
    for length in (16, case.queries):
        inputs = make_inputs(OpsCase(**{**vars(case), "queries": length, "keys": length}))
        started = read()
        loss = ours_loss(case.op, inputs)
        middle = read()
        torch.autograd.grad(loss, (inputs.student_query, inputs.student_key))
        times = [middle - started, read() - middle]
    return times[0], times[1]


def checked(case: OpsCase, on_progress: Progress = silent) -> tuple[float, float]:
    """Relative errors of value and gradients."""
    use_threads(case.threads)
    return tuple(check_correct(case))


def main() -> int:
    """Status of the process: 0, 1 where a limit is broken, 2 where it cannot be run."""
    parser = argparse.ArgumentParser(
        description="Prove that long maps are never built, and that nothing is lost."
    )
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    console = Console()
    broken = False
    try:
        for op in ("mse", "kl"):
            case = OpsCase(op, 1, 12, 6, 64, arguments.length, arguments.length, arguments.threads)
            forward, backward = in_own_process(seconds_of, case)
            peak = in_own_process(measure_peak, case, "ours")
            console.print(
                f"{op}: {arguments.length:,} tokens, 12 -> 6 heads of 64: forward {forward:.1f} s, backward "
                f"{backward:.1f} s ({clock_for(case.device, case.threads)} time, {case.threads} threads), peak "
                f"{peak / 2**20:,.0f} MiB beyond the inputs",
                highlight=False,
                soft_wrap=True,
            )
            if peak > MOST_BYTES:
                broken = True
                console.print(
                    f"{op}: more than {MOST_BYTES / 2**30:.0f} GiB", style="bold red", highlight=False
                )
            value, gradient = in_own_process(checked, case)
            console.print(
                f"{op}: off float64 by {value:.1e} (value) and {gradient:.1e} (gradients)", highlight=False
            )
    except AmadError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
