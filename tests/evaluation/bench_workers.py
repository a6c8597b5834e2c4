"""What the tests let processes of their own do; apart from the tests, as a fresh process imports it by name."""

import os
import signal

import torch

from amad.errors import RecipeError, ShapeError
from amad.evaluation.bench_measuring import peak_extra_bytes

MEBIBYTE = 1 << 20


def holds(mebibytes, on_progress):
    """Twice in turn, so that the peak is that of one."""

    def work():
        for _ in range(2):
            torch.ones(mebibytes * MEBIBYTE // 4)

    kept = torch.ones(30 * MEBIBYTE // 4)
    return peak_extra_bytes(work), kept.numel()


def takes(case, name, on_progress):
    if name == "refused":
        raise RecipeError("no room")
    return case + len(name)


def answers(what, on_progress):
    on_progress("half", 1, 2)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "gone":
        os._exit(3)
    if what == "refused":
        raise ShapeError("too long")
    if what == "broken":
        raise KeyError("nothing there")
    return what, os.getpid()
