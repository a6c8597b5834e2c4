"""What checkpoints cost beside one another: size, arithmetic, time, throughput and memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from amad.errors import AmadError, RecipeError
from amad.evaluation.bench_inputs import random_inputs
from amad.evaluation.bench_measuring import (
    Progress,
    check_machine,
    clock_for,
    free_bytes,
    in_own_process,
    memory_ratio,
    peak_extra_bytes,
    silent,
    surroundings,
    take_turns,
    use_threads,
)
from amad.evaluation.efficiency import (
    Latency,
    answer,
    count_checkpoint_bytes,
    count_flops,
    count_parameters,
    inputs_of,
)
from amad.models.load import load_model

RISE = 1.05
"""So much more throughput makes a larger batch worth it."""

PATIENCE = 2
"""Batch sizes in a row that bring no such rise before no larger one is tried."""

RESOLUTION = 4 << 20
"""Fewer bytes of a process are told apart too badly for a ratio."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ModelsCase:
    """Checkpoints to compare on one machine.

    Attributes:
        checkpoints: Folder of each model by its name; others are compared with the first.
        new_tokens: Length of every text that is generated.
        text_tokens: Words of every random input.
        largest_batch: No larger batch is tried.
        threads: Threads of torch.
        device: ``cpu`` or ``cuda``.
        inputs: A few samples for each model by its name, repeated as needed; random ones where None.

    Raises:
        RecipeError: if one of them is out of its range.
    """

    checkpoints: Mapping[str, str]
    new_tokens: int = 10
    text_tokens: int = 20
    largest_batch: int = 256
    threads: int = 1
    device: str = "cpu"
    inputs: Mapping[str, Arrays] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise RecipeError("there is no model to measure. Name a checkpoint.")
        for name in ("new_tokens", "text_tokens", "largest_batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name.replace('_', '-')} = {getattr(self, name)}: give 1 or more.")
        check_machine(self.device, self.threads)


def bench_models(case: ModelsCase, repeats: int = 20, on_progress: Progress = silent) -> dict[str, Any]:
    """What each checkpoint costs, and its ratio to the first.

    Models that generate do so greedily, encoder included, with exactly ``new_tokens`` tokens each; others do a forward
    pass. Models take turns within every round. The batch doubles until throughput no longer rises, memory would not
    do, or the largest batch is reached. Peaks are beyond the weights, in a process of its own for each model.

    Args:
        case: What is compared.
        repeats: Rounds at batch 1; a quarter as many, at least 3, at larger ones.
        on_progress: Told what is done.

    Returns:
        One document of numbers and text, as ``amad bench models --json`` prints it. A ratio of latencies is the median
        over rounds of the ratio within a round, and one of memory is None below :data:`RESOLUTION`.

    Raises:
        RecipeError: fewer rounds than 2, or a model that cannot run on its inputs.
        CheckpointError: if a checkpoint cannot be loaded.
    """
    if repeats < 2:
        raise RecipeError(f"repeats = {repeats}: a 95th percentile needs at least two rounds. Give 20.")
    measured = in_own_process(measure_times, case, repeats, on_progress=on_progress)
    missing: dict[str, str] = {}
    for number, (name, model) in enumerate(measured.items()):
        on_progress("memory", number, len(measured))
        sizes = sorted({1, model["best_batch"]})
        try:
            peaks = in_own_process(measure_peaks, case, name, sizes)
        except RecipeError as error:
            peaks, missing[f"{name} memory"] = dict.fromkeys(sizes), str(error)
        model |= {"peak_extra_bytes": peaks[1], "best_peak_extra_bytes": peaks[model["best_batch"]]}
    on_progress("memory", len(measured), len(measured))
    first = next(iter(measured))
    return {
        "models": measured,
        "ratios": {name: _ratios(measured[name], measured[first]) for name in measured if name != first},
        "missing": missing,
        "inputs": "random" if case.inputs is None else "recipe",
        "new_tokens": case.new_tokens,
        "text_tokens": case.text_tokens if case.inputs is None else None,
        "largest_batch": case.largest_batch,
        "threads": case.threads,
        "device": case.device,
        "clock": clock_for(case.device, case.threads),
        "repeats": repeats,
        **surroundings(case.device),
    }


def measure_times(
    case: ModelsCase, repeats: int, on_progress: Progress = silent
) -> dict[str, dict[str, Any]]:
    """Everything but the peaks, by the names of the models; see :func:`bench_models`."""
    use_threads(case.threads)
    models: dict[str, PreTrainedModel] = {}
    for number, name in enumerate(case.checkpoints):
        on_progress("loading", number, len(case.checkpoints))
        models[name] = _load(case, name)
    works = {name: _work(case, name, model) for name, model in models.items()}
    found: dict[str, dict[str, Any]] = {}
    for number, (name, model) in enumerate(models.items()):
        on_progress("counting", number, len(models))
        _check_runs(name, works[name], case)
        found[name] = {
            "checkpoint": str(case.checkpoints[name]),
            "class": type(model).__name__,
            "generates": bool(model.can_generate()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "parameters": count_parameters(model),
            "checkpoint_bytes": count_checkpoint_bytes(model),
            "flops": count_flops(model, _batch(case, name, model, 1), case.new_tokens),
        }
    sweep = Sweep(works, case, lambda batch: repeats if batch == 1 else max(3, repeats // 4), on_progress)
    sweep.run()
    for name, model_found in found.items():
        rates = sweep.rates[name]
        best = max(rates, key=rates.__getitem__)
        latency = sweep.latency[name]
        model_found |= {
            "latency_seconds": list(latency.seconds),
            "latency_seconds_median": latency.median_seconds,
            "latency_seconds_p95": latency.p95_seconds,
            "examples_per_second": rates,
            "best_batch": best,
            "best_examples_per_second": rates[best],
            "stopped": sweep.stopped[name],
        }
    return found


def measure_peaks(
    case: ModelsCase, name: str, batches: list[int], on_progress: Progress = silent
) -> dict[int, int]:
    """Peak bytes of one model beyond its weights, by the size of the batch; call it in a process of its own.

    An answer before them takes what libraries take once.
    """
    use_threads(case.threads)
    work = _work(case, name, _load(case, name))
    work(1)()
    return {batch: peak_extra_bytes(work(batch), case.device) for batch in batches}


Work = Callable[[int], Callable[[], None]]
"""What one model does with a batch of a size."""


class Sweep:
    """Throughput of models that take turns, at batches of 1, 2, 4 and so on, each as far as it gets.

    Args:
        works: Of each model by its name.
        case: Device, threads and largest batch.
        rounds: How many rounds at a size.
        on_progress: Told what is done.

    Attributes:
        latency: Times at batch 1.
        rates: Examples per second of each model at each size.
        stopped: Why no larger one was tried: ``throughput``, ``memory`` or ``largest batch``.
    """

    def __init__(
        self,
        works: Mapping[str, Work],
        case: ModelsCase,
        rounds: Callable[[int], int],
        on_progress: Progress = silent,
    ) -> None:
        self.works, self.case, self.rounds, self.on_progress = works, case, rounds, on_progress
        self.latency: dict[str, Latency] = {}
        self.rates: dict[str, dict[int, float]] = {name: {} for name in works}
        self.stopped: dict[str, str] = dict.fromkeys(works, "largest batch")
        self._needed = dict.fromkeys(works, 0)

    def run(self) -> None:
        """Measure, a larger batch only where twice the memory of the last one is free."""
        going, batch = list(self.works), 1
        while going and batch <= self.case.largest_batch:
            going = [name for name in going if self._fits(name, batch)]
            if going:
                times = self._times(going, batch)
                if batch == 1:
                    self.latency = times
                going = [name for name in going if self._rises(name, batch, times[name])]
            batch *= 2

    def _times(self, names: list[str], batch: int) -> dict[str, Latency]:
        def told(_: str, done: int, total: int) -> None:
            self.on_progress(f"batches of {batch}", done, total)

        contenders = {name: self.works[name](batch) for name in names}
        return take_turns(
            contenders,
            self.rounds(batch),
            clock_for(self.case.device, self.case.threads),
            self.case.device,
            told,
        )

    def _rises(self, name: str, batch: int, time: Latency) -> bool:
        self.rates[name][batch] = batch / time.median_seconds
        rises = still_rises(list(self.rates[name].values()))
        if not rises:
            self.stopped[name] = "throughput"
        return rises

    def _fits(self, name: str, batch: int) -> bool:
        """Whether a batch runs; larger ones than it take twice what it took, at most."""
        fits = 2 * self._needed[name] <= free_bytes(self.case.device)
        if fits:
            try:
                self._needed[name] = peak_extra_bytes(self.works[name](batch), self.case.device)
            except torch.OutOfMemoryError:
                fits = False
            except RecipeError:
                # Without a way to read it, memory does not limit the batch.
                self._needed[name] = 0
        if not fits:
            self.stopped[name] = "memory"
        return fits


def still_rises(rates: Sequence[float]) -> bool:
    """Whether a larger batch is worth a try: the better one of the last ``PATIENCE`` rates rose above all before."""
    before = rates[:-PATIENCE]
    return not before or max(rates[-PATIENCE:]) > RISE * max(before)


def _load(case: ModelsCase, name: str) -> PreTrainedModel:
    return load_model(case.checkpoints[name]).to(case.device).eval()  # type: ignore[no-any-return]


def _work(case: ModelsCase, name: str, model: PreTrainedModel) -> Work:
    def of_size(batch: int) -> Callable[[], None]:
        inputs = _batch(case, name, model, batch)
        return lambda: answer(model, inputs, case.new_tokens)

    return of_size


def _batch(case: ModelsCase, name: str, model: PreTrainedModel, n: int) -> dict[str, Tensor]:
    """So many samples, on the device."""
    if case.inputs is None:
        return inputs_of(random_inputs(model, n, case.text_tokens), model.device)
    given = inputs_of({key: torch.from_numpy(one) for key, one in case.inputs[name].items()}, model.device)
    return {key: one[torch.arange(n, device=one.device) % len(one)] for key, one in given.items()}


def _check_runs(name: str, work: Work, case: ModelsCase) -> None:
    """Answer once, and turn whatever a model says of inputs that it cannot read into a message."""
    try:
        work(1)()
    except AmadError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        other = (
            "Name a recipe whose data it reads."
            if case.inputs is None
            else "Name models that read this data."
        )
        reason = " ".join(str(error).split())[:300]
        raise RecipeError(
            f"{name} cannot run on its inputs ({type(error).__name__}: {reason}). {other}"
        ) from error


def _ratios(one: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float | None]:
    """Of every cost to that of the first model; None where one is unknown or too small to tell."""
    ratios = {
        key: one[key] / first[key]
        for key in (
            "parameters",
            "checkpoint_bytes",
            "flops",
            "latency_seconds_p95",
            "best_examples_per_second",
        )
    }
    times = Latency(tuple(one["latency_seconds"])), Latency(tuple(first["latency_seconds"]))
    ratios["latency_seconds_median"] = times[0].ratio_to(times[1])
    peaks = {
        key: memory_ratio(one[key], first[key]) if min(one[key] or 0, first[key] or 0) >= RESOLUTION else None
        for key in ("peak_extra_bytes", "best_peak_extra_bytes")
    }
    return ratios | peaks
