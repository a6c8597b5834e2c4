"""How time and memory are measured: rounds that take turns, and a process for each peak."""

import contextlib
import ctypes
import gc
import math
import multiprocessing
import os
import platform
import re
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from amad.errors import AmadError, RecipeError
from amad.evaluation.efficiency import Latency
from amad.records import environment

Clock = Literal["process", "wall"]
"""``process``: CPU time of all threads of this process, which neighbours on the machine do not lengthen; ``wall``."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done and how much there is."""


class ProcessLostError(RecipeError):
    """A process that measured was ended from outside, most often for want of memory."""


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody sees."""


def clock_for(device: str, threads: int) -> Clock:
    """One thread on the CPU has process time, which is immune to neighbours; everything else wall time."""
    return "process" if threads == 1 and device == "cpu" else "wall"


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Clock,
    device: str = "cpu",
    on_progress: Progress = silent,
) -> dict[str, Latency]:
    """Seconds of each contender in each round.

    Every round runs each contender once and starts with the next one, so that a machine that slows down slows all
    of them alike. One round before them does not count.

    Raises:
        RecipeError: fewer than one round.
    """
    if rounds < 1:
        raise RecipeError(f"repeats = {rounds}: a time needs at least one round. Give 1 or more.")
    read = time.process_time if clock == "process" else time.perf_counter
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        on_progress("timing", number + 1, rounds + 1)
        first = number % len(names)
        for name in names[first:] + names[:first]:
            finish(device)
            started = read()
            contenders[name]()
            finish(device)
            if number >= 0:
                seconds[name].append(read() - started)
    on_progress("timing", rounds + 1, rounds + 1)
    return {name: Latency(tuple(seconds[name])) for name in names}


def peak_extra_bytes(work: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that the work held at its worst moment, beyond what was held before it.

    On CUDA those of torch's allocator. On a CPU those of the whole process, which should be one of its own: the
    kernel's high-water mark of resident memory, set back before the work, minus what is resident then. It counts in
    pages and in batches of them, so that a megabyte more or less means nothing.

    Raises:
        RecipeError: on a CPU without Linux's ``/proc/self/clear_refs``.
    """
    gc.collect()
    finish(device)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        finish(device)
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        work()
        return max(_status_bytes("VmHWM") - before, 0)
    except OSError as error:
        raise RecipeError(
            f"peak memory is read from Linux's /proc/self, and this is {platform.system()} ({error.strerror}). "
            "Times are measured all the same."
        ) from error


def in_own_process(function: Callable[..., Any], *arguments: Any, on_progress: Progress = silent) -> Any:
    """What a function of a module returns in a fresh process; it takes ``on_progress`` as its last argument.

    Errors of the function are raised here.

    Raises:
        ProcessLostError: the process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        while True:
            kind, content = receiving.recv()
            if kind == "progress":
                on_progress(*content)
            elif kind == "error":
                raise content
            else:
                return content
    except EOFError:
        process.join()
        if process.exitcode is None or process.exitcode >= 0:
            raise RuntimeError(f"the process that measured ended with status {process.exitcode}") from None
        raise ProcessLostError(
            f"the process that measured was ended by signal {-process.exitcode}; 9 is most often for want of memory. "
            "Choose a smaller shape, or free memory."
        ) from None
    finally:
        receiving.close()
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()


def peaks_of(
    function: Callable[..., int],
    case: Any,
    names: Iterable[str],
    missing: dict[str, str],
    on_progress: Progress = silent,
) -> dict[str, int | None]:
    """What a function finds to be the peak of each contender of a case, each in a process of its own.

    Where there is none it is None, and ``missing`` is told why.
    """
    peaks: dict[str, int | None] = {}
    names = list(names)
    for number, name in enumerate(names):
        on_progress("memory", number, len(names))
        try:
            peaks[name] = in_own_process(function, case, name)
        except RecipeError as error:
            peaks[name], missing[f"{name} memory"] = None, str(error)
    on_progress("memory", len(names), len(names))
    return peaks


def ratio(one: Latency | None, other: Latency | None) -> float | None:
    """The median over rounds of the ratio within a round; None where one was not timed."""
    return None if one is None or other is None else one.ratio_to(other)


def memory_ratio(one: int | None, other: int | None) -> float | None:
    """How many times as many bytes; None where one is unknown or the other zero."""
    return one / other if one is not None and other else None


def check_fits(n_bytes: int, device: str) -> None:
    """Refuse what would not fit into memory.

    Raises:
        RecipeError: if more is needed than is free.
    """
    free = free_bytes(device)
    if n_bytes > free:
        raise RecipeError(
            f"the maps would take about {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free."
        )


def free_bytes(device: str = "cpu") -> int:
    """Memory that a contender may still take on this device."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    free = math.inf
    with contextlib.suppress(OSError):
        free = _field_bytes(Path("/proc/meminfo"), "MemAvailable:")
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        held = (group / "memory.stat").read_text().split()
        free = min(free, limit - int(held[held.index("anon") + 1]))
    if math.isinf(free):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(free)


def use_threads(threads: int) -> None:
    """Let torch compute with so many threads, and compile with one."""
    torch.set_num_threads(threads)
    from torch._inductor import config

    config.compile_threads = 1


def surroundings(device: str) -> dict[str, Any]:
    """What a measurement depends on beside its shape: ``versions``, ``machine`` and ``commit``, None if unknown."""
    known = environment(device)
    versions = {name: known[name] for name in ("python", "amad", "torch", "transformers")}
    machine = {
        "platform": known["platform"],
        "cpu": _cpu_name(),
        "cpu_count": known["cpu_count"],
        "allocator": _allocator(),
    }
    if device == "cuda":
        machine["gpu"] = torch.cuda.get_device_name()
    return {"versions": versions, "machine": machine, "commit": known["commit"]}


def check_machine(device: str, threads: int) -> None:
    """Refuse what cannot be run here.

    Raises:
        RecipeError: an unknown or absent device, or fewer threads than one.
    """
    if device not in ("cpu", "cuda"):
        raise RecipeError(f"device {device!r} is neither cpu nor cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise RecipeError("device cuda is not there. Use --device cpu, or a torch that sees the GPU.")
    if threads < 1:
        raise RecipeError(f"threads = {threads}: work needs at least one. Give 1 or more.")


def default_device() -> str:
    """``cuda`` if there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def finish(device: str) -> None:
    """Wait for what a GPU still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def _serve(sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    def on_progress(*content: Any) -> None:
        sending.send(("progress", content))

    answer: tuple[str, Any]
    try:
        answer = ("done", function(*arguments, on_progress))
    except AmadError as error:
        answer = ("error", error)
    except Exception:
        # Not every exception survives the way between processes; its story does.
        answer = ("error", RuntimeError(traceback.format_exc()))
    with contextlib.suppress(BrokenPipeError):
        sending.send(answer)


def _return_free_memory() -> None:
    """Give back to the system what the allocator keeps, so that what is resident is what is held."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _status_bytes(field: str) -> int:
    return _field_bytes(Path("/proc/self/status"), f"{field}:")


def _field_bytes(path: Path, field: str) -> int:
    words = path.read_text().split()
    return 1024 * int(words[words.index(field) + 1])


def _allocator() -> str:
    """What replaces or tunes the system's allocator, or ``default``: whole maps can be three times faster with it."""
    preloaded = [Path(name).name for name in re.split("[ :]", os.environ.get("LD_PRELOAD", "")) if name]
    tuned = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")]
    return " ".join(preloaded + tuned) or "default"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
