import os
import sys
import time
from pathlib import Path

import pytest
import torch

from amad.errors import RecipeError, ShapeError
from amad.evaluation.bench_measuring import (
    ProcessLostError,
    check_fits,
    check_machine,
    clock_for,
    free_bytes,
    in_own_process,
    memory_ratio,
    peaks_of,
    ratio,
    silent,
    surroundings,
    take_turns,
)
from amad.evaluation.efficiency import Latency

# A process that is started anew imports by name.
sys.path.insert(0, str(Path(__file__).parent))

from bench_workers import MEBIBYTE, answers, holds, takes


def test_rounds_take_turns_and_the_first_does_not_count():
    order = []
    works = {name: lambda name=name: order.append(name) for name in "abc"}
    times = take_turns(works, 2, "wall")
    assert "".join(order) == "cab" + "abc" + "bca"
    assert [len(times[name].seconds) for name in "abc"] == [2, 2, 2]


def test_wall_time_counts_waiting_and_process_time_does_not():
    def wait():
        time.sleep(0.05)

    assert take_turns({"a": wait}, 2, "wall")["a"].median_seconds >= 0.05
    assert take_turns({"a": wait}, 2, "process")["a"].median_seconds < 0.03


def test_what_is_done_is_told():
    told = []
    take_turns({"a": int}, 2, "wall", on_progress=lambda *content: told.append(content))
    assert told == [("timing", done, 3) for done in range(4)]


def test_no_round_is_refused():
    with pytest.raises(RecipeError, match="repeats = 0"):
        take_turns({"a": int}, 0, "wall")


def test_one_thread_on_a_cpu_has_process_time():
    assert clock_for("cpu", 1) == "process"
    assert clock_for("cpu", 2) == clock_for("cuda", 1) == "wall"


def test_the_peak_is_what_was_held_at_once_beyond_what_was_there():
    peak, _ = in_own_process(holds, 50)
    # The kernel counts pages in batches.
    assert 49 * MEBIBYTE < peak < 54 * MEBIBYTE


def test_a_process_of_its_own_answers_and_tells():
    told = []
    answer, process = in_own_process(answers, "x", on_progress=lambda *content: told.append(content))
    assert answer == "x"
    assert process != os.getpid()
    assert told == [("half", 1, 2)]


@pytest.mark.parametrize(
    ("what", "kind", "match"),
    [
        ("killed", ProcessLostError, "signal 9"),
        pytest.param("gone", RuntimeError, "status 3", marks=pytest.mark.slow),
        ("refused", ShapeError, "^too long$"),
        pytest.param("broken", RuntimeError, "nothing there", marks=pytest.mark.slow),
    ],
)
def test_a_process_of_its_own_that_fails_says_how(what, kind, match):
    with pytest.raises(kind, match=match):
        in_own_process(answers, what)


def test_a_peak_that_is_refused_is_missing_with_its_reason():
    missing = {}
    assert peaks_of(takes, 5, ["abc", "refused"], missing) == {"abc": 8, "refused": None}
    assert missing == {"refused memory": "no room"}


def test_ratios_are_of_what_is_there():
    one, two = Latency((2.0, 20.0, 2.0)), Latency((1.0, 10.0, 2.0))
    assert ratio(one, two) == 2
    assert ratio(one, None) is ratio(None, two) is None
    assert memory_ratio(6, 3) == 2
    assert memory_ratio(None, 3) is memory_ratio(6, None) is memory_ratio(6, 0) is None


def test_free_memory_is_some_and_what_does_not_fit_is_refused():
    free = free_bytes()
    assert MEBIBYTE < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + 1
    check_fits(MEBIBYTE, "cpu")
    with pytest.raises(RecipeError, match="GiB are free"):
        check_fits(100 * free, "cpu")


def test_surroundings_say_what_a_number_depends_on():
    found = surroundings("cpu")
    assert set(found) == {"versions", "machine", "commit"}
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cpu"]
    assert found["machine"]["cpu_count"] == os.cpu_count()
    assert "gpu" not in found["machine"]


def test_an_allocator_that_is_not_the_systems_is_named(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "LD_PRELOAD"]:
        monkeypatch.delenv(name)
    assert surroundings("cpu")["machine"]["allocator"] == "default"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("LD_PRELOAD", "/somewhere/libtcmalloc.so.4")
    assert surroundings("cpu")["machine"]["allocator"] == "libtcmalloc.so.4 MALLOC_ARENA_MAX=1"


@pytest.mark.parametrize(
    ("device", "threads", "match"), [("tpu", 1, "neither cpu nor cuda"), ("cpu", 0, "threads = 0")]
)
def test_a_machine_that_cannot_be_is_refused(device, threads, match):
    with pytest.raises(RecipeError, match=match):
        check_machine(device, threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(RecipeError, match="cuda is not there"):
        check_machine("cuda", 1)


def test_nobody_needs_to_watch():
    assert silent("timing", 0, 1) is None
